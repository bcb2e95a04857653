use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::mark::{self, Mark};
use crate::{BoxError, Error, ErrorKind, Message, Outcome, Reason, RetryClass};

/// Turns errors that trying again cannot mend into `Ok(DeadLetter { reason })`.
///
/// | error | reason |
/// |---|---|
/// | given up by the [`RetryLayer`](crate::RetryLayer) | [`exhausted`](Reason::EXHAUSTED) |
/// | permanent, and an [`Undecodable`](ErrorKind::Undecodable) is among its causes | [`undecodable`](Reason::UNDECODABLE) |
/// | permanent | [`permanent`](Reason::PERMANENT) |
/// | any other | passed on: a store that fails is no reason to give up a message |
///
/// An overload (see [`overloaded`](crate::overloaded)) becomes `Ok(Release { after })` of about a
/// second: it is no failure of the message.
///
/// The reason's text is the error and its causes. Put it outermost, around the retry layer.
///
/// ```
/// # use std::sync::Arc;
/// # use anybroker_core::*;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let handler = ServiceBuilder::new().layer(DeadLetterLayer::new()).service(service_fn(
///     |_: Message| async { Err::<Outcome, _>(permanent("the order has no items")) },
/// ));
/// let envelope = Arc::new(Envelope::new("order.created", "{}"));
/// let subscription = Arc::new(Subscription::topic("order.created").group("email"));
///
/// let outcome = handler.oneshot(Message::new(envelope, subscription, 1)).await?;
/// assert_eq!(outcome, Outcome::dead_letter(Reason::PERMANENT, "the order has no items"));
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DeadLetterLayer;

/// The service of a [`DeadLetterLayer`].
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterService<S> {
    inner: S,
}

impl DeadLetterLayer {
    /// Makes the layer; it has no settings.
    pub fn new() -> Self {
        Self
    }
}

/// The outcome for an error that is given up or is no failure of the message, or the error.
pub(crate) fn judge(error: BoxError) -> Result<Outcome, BoxError> {
    let code =
        match mark::find(&error) {
            Some(Mark::Overloaded) => return Ok(mark::released()),
            Some(Mark::Exhausted) => Reason::EXHAUSTED,
            Some(Mark::Permanent | Mark::Class(RetryClass::Permanent)) => {
                if is_undecodable(&error) { Reason::UNDECODABLE } else { Reason::PERMANENT }
            }
            _ => return Err(error),
        };
    Ok(Outcome::DeadLetter { reason: Reason::from_error(code, &*error) })
}

fn is_undecodable(error: &BoxError) -> bool {
    let mut link: Option<&(dyn StdError + 'static)> = Some(&**error);
    while let Some(error) = link {
        if error.downcast_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::Undecodable)
        {
            return true;
        }
        link = error.source();
    }
    false
}

impl<S> Layer<S> for DeadLetterLayer {
    type Service = DeadLetterService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadLetterService { inner }
    }
}

impl<S> Service<Message> for DeadLetterService<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>>,
{
    type Response = Outcome;
    type Error = BoxError;
    type Future = DeadLetterFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        DeadLetterFuture { inner: self.inner.call(message) }
    }
}

pin_project! {
    /// The future of a [`DeadLetterService`].
    #[derive(Debug)]
    pub struct DeadLetterFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, E> Future for DeadLetterFuture<F>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().inner.poll(cx)).or_else(|error| judge(error.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permanent;

    fn reason(error: impl Into<BoxError>) -> (String, String) {
        match judge(error.into()).unwrap() {
            Outcome::DeadLetter { reason } => (reason.code().to_owned(), reason.error().to_owned()),
            outcome => panic!("{outcome:?}"),
        }
    }

    fn pair(code: &str, error: &str) -> (String, String) {
        (code.to_owned(), error.to_owned())
    }

    #[test]
    fn reason_says_what_kind_of_failure_it_was() {
        let undecodable = || {
            Error::new(ErrorKind::Undecodable, "the payload is no order")
                .with_source("expected a number")
        };
        let text = "the payload is no order: expected a number";
        assert_eq!(reason(undecodable()), pair("undecodable", text));
        assert_eq!(reason(permanent(undecodable())), pair("undecodable", text));
        assert_eq!(reason(mark::exhausted("no answer".into())), pair("exhausted", "no answer"));
        assert_eq!(reason(permanent("bad order")), pair("permanent", "bad order"));
        assert_eq!(
            reason(Error::new(ErrorKind::TooLarge, "the answer is too large")),
            pair("permanent", "the answer is too large")
        );
    }

    #[test]
    fn other_errors_pass() {
        use ErrorKind::{Blocked, Closed, Denied, Timeout, Unavailable};

        assert_eq!(judge("no answer".into()).unwrap_err().to_string(), "no answer");
        for kind in [Unavailable, Timeout, Blocked, Denied, Closed] {
            let error = judge(Error::new(kind, "not now").into()).unwrap_err();
            assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), kind);
        }
    }
}
