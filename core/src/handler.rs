use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower::Service;

use crate::{BoxError, Message, Outcome, TypedMessage};

/// Makes a handler from an async function of a typed message and the [`Message`] around it.
///
/// The function answers anything that is [`IntoOutcome`]: nothing, an [`Outcome`], or a `Result`
/// of either, so that `?` works on any error.
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// # use anybroker_macros::Event;
/// use anybroker::{BoxError, Message, handler_fn};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.created")]
/// struct OrderCreated { order_id: u64 }
///
/// async fn send_mail(event: OrderCreated, message: Message) -> Result<(), BoxError> {
///     println!("order {} on attempt {}", event.order_id, message.attempt());
///     Ok(())
/// }
/// let handler = handler_fn(send_mail);
///
/// // A closure clones what each call needs, and says what `?` turns errors into.
/// let folder = std::path::PathBuf::from("mails");
/// let handler = handler_fn(move |event: OrderCreated, _| {
///     let file = folder.join(event.order_id.to_string());
///     async move {
///         std::fs::write(file, "sent")?;
///         Ok::<_, BoxError>(())
///     }
/// });
/// # fn is_handler(_: impl anybroker::Handler) {}
/// # is_handler(handler);
/// ```
///
/// # Errors
/// A payload that does not decode is the permanent error
/// [`Undecodable`](crate::ErrorKind::Undecodable), and the function is not called. A panic of the
/// function becomes an error with the panic's text, which is retried like any other.
pub fn handler_fn<F, T, Fut>(f: F) -> HandlerFn<F, T>
where
    F: Fn(T, Message) -> Fut + Clone + Send + 'static,
    T: TypedMessage,
    Fut: Future<Output: IntoOutcome> + Send,
{
    HandlerFn { f, message: PhantomData }
}

/// Any tower service that turns a [`Message`] into an [`Outcome`]: a [`handler_fn`], a
/// [`batch_handler_fn`](crate::batch_handler_fn), a [`Router`](crate::Router), or one of them with
/// layers around it. Do not implement it; implement `tower::Service`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no handler",
    label = "not a handler",
    note = "wrap the function: `handler_fn(|event: OrderCreated, message: Message| async move {{ .. }})`",
    note = "a handler is a `tower::Service<Message, Response = Outcome>` that is `Clone + Send + \
            'static`, whose error is `Into<BoxError>` and whose future is `Send`",
    note = "a layer whose service is no `Clone`, such as tower's `RateLimitLayer`, goes inside of \
            a `BufferLayer`: `.buffer(64).rate_limit(..)`"
)]
pub trait Handler:
    Service<Message, Response = Outcome, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

#[diagnostic::do_not_recommend]
impl<S> Handler for S where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// What a handler may answer: `()` and `Ok` acknowledge, an error is retried.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no outcome of a handler",
    label = "the handler answers this",
    note = "answer `()`, an `Outcome`, or a `Result` of either whose error converts into `BoxError` \
            (any `std::error::Error + Send + Sync`, a `String`)"
)]
pub trait IntoOutcome {
    /// Turns the answer into an outcome.
    ///
    /// # Errors
    /// The handler's error.
    fn into_outcome(self) -> Result<Outcome, BoxError>;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Result<Outcome, BoxError> {
        Ok(Outcome::Ack)
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Result<Outcome, BoxError> {
        Ok(self)
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutcome, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Result<Outcome, BoxError> {
        self.map_err(Into::into)?.into_outcome()
    }
}

/// The handler that [`handler_fn`] makes.
pub struct HandlerFn<F, T> {
    f: F,
    message: PhantomData<fn(T)>,
}

impl<F, T, Fut> Service<Message> for HandlerFn<F, T>
where
    F: Fn(T, Message) -> Fut,
    T: TypedMessage,
    Fut: Future<Output: IntoOutcome>,
{
    type Response = Outcome;
    type Error = BoxError;
    type Future = HandlerFuture<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let started = caught(|| {
            let typed = T::from_envelope(message.envelope())?;
            Ok((self.f)(typed, message))
        });
        match started {
            Ok(future) => HandlerFuture { future: Some(future), error: None },
            Err(error) => HandlerFuture { future: None, error: Some(error) },
        }
    }
}

impl<F: Clone, T> Clone for HandlerFn<F, T> {
    fn clone(&self) -> Self {
        Self { f: self.f.clone(), message: PhantomData }
    }
}

impl<F, T: TypedMessage> fmt::Debug for HandlerFn<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFn").field("type", &T::TYPE).finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of a [`HandlerFn`].
    pub struct HandlerFuture<Fut> {
        #[pin]
        future: Option<Fut>,
        error: Option<BoxError>,
    }
}

impl<Fut: Future<Output: IntoOutcome>> Future for HandlerFuture<Fut> {
    type Output = Result<Outcome, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(error) = this.error.take() {
            return Poll::Ready(Err(error));
        }
        match this.future.as_pin_mut() {
            Some(future) => poll_caught(future, cx, IntoOutcome::into_outcome),
            None => Poll::Ready(Err("a handler's future was polled after its end".into())),
        }
    }
}

impl<Fut> fmt::Debug for HandlerFuture<Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFuture").finish_non_exhaustive()
    }
}

/// Runs a piece of a handler; its panic becomes an error.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    // After a panic the future is not polled again, and the next call begins anew.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Polls a handler's future and turns what it answers into something else; a panic of either
/// becomes an error.
pub(crate) fn poll_caught<Fut: Future, T>(
    future: Pin<&mut Fut>,
    cx: &mut Context<'_>,
    finish: impl FnOnce(Fut::Output) -> Result<T, BoxError>,
) -> Poll<Result<T, BoxError>> {
    let polled = catch_unwind(AssertUnwindSafe(|| future.poll(cx).map(finish)));
    polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
}

/// The error of a handler that panicked, with the panic's text.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> BoxError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is no text");
    format!("the handler panicked: {text}").into()
}

#[cfg(test)]
pub(crate) mod tests;
