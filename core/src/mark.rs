//! What the layers tell each other about an error, in a form that layers from elsewhere pass on:
//! a private wrapper, found by walking the chain of sources.

use std::error::Error as StdError;
use std::fmt;

use std::time::Duration;

use tower::load_shed::error::Overloaded;

use crate::{BoxError, Error, ErrorKind, Outcome, RetryClass};

/// Marks an error as one that trying again cannot mend: the message is dead-lettered at once.
///
/// The mark is found through errors that name it as their source. `anyhow::Error` hides the type
/// of its outermost error: mark last, `permanent(anyhow_error)`.
pub fn permanent(error: impl Into<BoxError>) -> BoxError {
    Box::new(Marked { mark: Mark::Permanent, error: error.into() })
}

/// Marks an error that says nothing about the message: a limit, a rate, a breaker that is open. The
/// message is released, and comes again after about a second with no attempt used, however often
/// that happens.
///
/// What tower's `LoadShed` sheds, because of a concurrency or rate limit beneath it for instance,
/// is such an error without a mark. Mark what other layers answer:
///
/// ```
/// # use anybroker_core::{BoxError, Message, Outcome, RetryLayer, Backoff, overloaded};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use std::{sync::Arc, time::Duration};
/// # use anybroker_core::{Envelope, Subscription};
/// #[derive(Debug)]
/// enum BreakerError {
///     Open,
///     Failed(BoxError),
/// }
/// # async fn call() -> Result<Outcome, BreakerError> { Err(BreakerError::Open) }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let handler = ServiceBuilder::new()
///     .layer(RetryLayer::new(Backoff::exponential(Duration::from_secs(1))))
///     .map_err(|error: BreakerError| match error {
///         BreakerError::Open => overloaded("the breaker is open"),
///         BreakerError::Failed(error) => error,
///     })
///     .service(service_fn(|_: Message| call()));
/// # let envelope = Arc::new(Envelope::new("order.created", "{}"));
/// # let subscription = Arc::new(Subscription::topic("order.created").group("email"));
/// # let outcome = handler.oneshot(Message::new(envelope, subscription, 5)).await?;
/// # assert!(matches!(outcome, Outcome::Release { .. }));
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
///
/// The mark is found through errors that name it as their source; see [`permanent`].
pub fn overloaded(error: impl Into<BoxError>) -> BoxError {
    Box::new(Marked { mark: Mark::Overloaded, error: error.into() })
}

/// Whether trying again can help, as far as the error or one of its causes tells; an error that
/// says nothing is transient.
pub fn retry_class(error: &BoxError) -> RetryClass {
    match find(error) {
        Some(Mark::Permanent | Mark::Exhausted) => RetryClass::Permanent,
        Some(Mark::Class(class)) => class,
        Some(Mark::Overloaded) | None => RetryClass::Transient,
    }
}

/// What becomes of a message that met an overload: it is given back, for a time that differs from
/// message to message, so that those that were shed together do not come again together.
pub(crate) fn released() -> Outcome {
    Outcome::Release { after: Duration::from_millis(fastrand::u64(500..1500)) }
}

/// Marks an error that the retry layer gave up on.
pub(crate) fn exhausted(error: BoxError) -> BoxError {
    Box::new(Marked { mark: Mark::Exhausted, error })
}

/// The outermost thing the chain says.
pub(crate) fn find(error: &BoxError) -> Option<Mark> {
    let mut link: Option<&(dyn StdError + 'static)> = Some(&**error);
    while let Some(error) = link {
        if let Some(marked) = error.downcast_ref::<Marked>() {
            return Some(marked.mark);
        }
        if error.is::<Overloaded>() {
            return Some(Mark::Overloaded);
        }
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(Mark::Class(class_for_message(error)));
        }
        link = error.source();
    }
    None
}

/// What an error of the library means for the message whose handler met it: a closed broker or a
/// missing right is final for that operation, not for the message.
fn class_for_message(error: &Error) -> RetryClass {
    use ErrorKind::{Closed, Denied, NotFound, StaleDelivery};
    match error.kind() {
        Closed | Denied | NotFound | StaleDelivery => RetryClass::Transient,
        _ => error.retry_class(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Permanent,
    Exhausted,
    Overloaded,
    Class(RetryClass),
}

/// Shows the error it wraps, and is invisible otherwise.
struct Marked {
    mark: Mark,
    error: BoxError,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Marked {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The text is already the wrapped error's: its causes follow, not itself again.
        // An anybroker error must stay findable, so that its class and kind survive.
        match self.error.downcast_ref::<Error>() {
            Some(error) => Some(error),
            None => self.error.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Reason};

    /// What a layer from elsewhere makes of an error.
    #[derive(Debug)]
    struct Foreign(BoxError);

    impl fmt::Display for Foreign {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the layer failed")
        }
    }

    impl StdError for Foreign {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&*self.0)
        }
    }

    fn foreign(error: impl Into<BoxError>) -> BoxError {
        Foreign(error.into()).into()
    }

    fn unreachable_broker() -> Error {
        Error::new(ErrorKind::Unavailable, "cannot reach the broker").with_source("refused")
    }

    #[test]
    fn an_error_that_says_nothing_is_transient() {
        let error = foreign("out of paper");
        assert_eq!(find(&error), None);
        assert_eq!(retry_class(&error), RetryClass::Transient);
    }

    #[test]
    fn marks_and_classes_show_through_foreign_wrappers() {
        for (error, mark, class) in [
            (permanent("no such card"), Mark::Permanent, RetryClass::Permanent),
            (exhausted("no answer".into()), Mark::Exhausted, RetryClass::Permanent),
            (
                unreachable_broker().into(),
                Mark::Class(RetryClass::Transient),
                RetryClass::Transient,
            ),
            (
                Error::new(ErrorKind::Timeout, "no answer").into(),
                Mark::Class(RetryClass::Ambiguous),
                RetryClass::Ambiguous,
            ),
        ] {
            let error = foreign(foreign(error));
            assert_eq!(find(&error), Some(mark));
            assert_eq!(retry_class(&error), class);
        }
    }

    #[test]
    fn an_overload_shows_through_foreign_wrappers_whoever_marked_it() {
        for error in [overloaded("the breaker is open"), Overloaded::new().into()] {
            let error = foreign(foreign(error));
            assert_eq!(find(&error), Some(Mark::Overloaded));
            assert_eq!(retry_class(&error), RetryClass::Transient);
        }
        assert_eq!(find(&permanent(overloaded("the breaker is open"))), Some(Mark::Permanent));
        assert_eq!(find(&overloaded(permanent("no such card"))), Some(Mark::Overloaded));
    }

    #[test]
    fn the_outermost_mark_counts() {
        let transient: BoxError = unreachable_broker().into();
        assert_eq!(retry_class(&permanent(foreign(transient))), RetryClass::Permanent);
        assert_eq!(find(&exhausted(foreign(permanent("no such card")))), Some(Mark::Exhausted));
        let outer = unreachable_broker().with_source(permanent("no such card"));
        assert_eq!(retry_class(&outer.into()), RetryClass::Transient);
    }

    #[test]
    fn a_marked_error_looks_like_the_error() {
        let error = permanent(unreachable_broker());
        assert_eq!(error.to_string(), "cannot reach the broker");
        assert_eq!(format!("{error:?}"), format!("{:?}", unreachable_broker()));
        let error = permanent(foreign("out of paper"));
        assert_eq!(error.source().expect("a source").to_string(), "out of paper");
        assert!(permanent("no such card").source().is_none());
    }

    #[test]
    fn the_library_s_own_error_is_found_beneath_a_mark() {
        let error = foreign(exhausted(permanent(unreachable_broker())));
        let mut link: Option<&(dyn StdError + 'static)> = Some(&*error);
        let found = std::iter::from_fn(|| {
            let error = link?;
            link = error.source();
            Some(error)
        })
        .find_map(|error| error.downcast_ref::<Error>());
        assert_eq!(found.expect("it is there").kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_reason_repeats_no_text() {
        let chain = "the layer failed: cannot reach the broker: refused";
        for error in [
            foreign(unreachable_broker()),
            foreign(permanent(unreachable_broker())),
            foreign(exhausted(permanent(unreachable_broker()))),
            exhausted(foreign(permanent(unreachable_broker()))),
        ] {
            assert_eq!(Reason::from_error(Reason::PERMANENT, &*error).error(), chain);
        }
    }
}
