use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::adapter::Place;
use crate::{Error, ErrorKind, Result, RetryClass};

/// Resolves when the broker has answered a send or a settlement.
///
/// The operation runs whether or not this is polled; dropping it only gives up the answer.
#[must_use = "the result of a send or settlement is only known when this is awaited"]
pub struct Confirmation(State);

enum State {
    Ready(Option<Result<()>>),
    Waiting(oneshot::Receiver<Result<()>>),
    Running(Pin<Box<dyn Future<Output = Result<()>> + Send>>),
}

/// The other end of a [`Confirmation`]: answers it once.
///
/// Dropped without an answer it answers [`RetryClass::Ambiguous`].
#[derive(Debug)]
pub struct Confirmer {
    sender: oneshot::Sender<Result<()>>,
    _place: Option<Place>,
}

impl Confirmation {
    /// A confirmation that is there already.
    pub fn ready(result: Result<()>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// A confirmation that another task answers.
    pub fn channel() -> (Confirmer, Self) {
        let (sender, receiver) = oneshot::channel();
        (Confirmer { sender, _place: None }, Self(State::Waiting(receiver)))
    }

    /// The answer, when it is there already.
    pub(crate) fn take_ready(&mut self) -> Option<Result<()>> {
        match &mut self.0 {
            State::Ready(result) => result.take(),
            State::Waiting(_) | State::Running(_) => None,
        }
    }

    /// A confirmation that comes from a future which goes on in a task of its own.
    pub(crate) fn spawn(future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        let task = tokio::spawn(future);
        Self::run(async move {
            task.await.unwrap_or_else(|ended| match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(Error::new(ErrorKind::Closed, "the runtime was shut down")
                    .class(RetryClass::Ambiguous)
                    .with_source(cancelled)),
            })
        })
    }

    /// A confirmation that comes from a future. What the future does, it does only while polled: an
    /// adapter starts the operation before, and lets the future wait for the answer.
    pub fn run(future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(State::Running(Box::pin(future)))
    }
}

impl Confirmer {
    /// Answers the confirmation.
    pub fn confirm(self, result: Result<()>) {
        // Nobody waits any more: the answer is of no use, which is the caller's decision.
        let _ = self.sender.send(result);
    }

    /// Holds a place until it is gone.
    pub(crate) fn holding(self, place: Place) -> Self {
        Self { _place: Some(place), ..self }
    }
}

impl Future for Confirmation {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.0 {
            State::Ready(answer) => answer.take(),
            State::Waiting(receiver) => ready!(Pin::new(receiver).poll(cx)).ok(),
            State::Running(future) => Some(ready!(future.as_mut().poll(cx))),
        };
        self.0 = State::Ready(None);
        // Without an answer, or asked once more after it, a failed send must not look confirmed.
        Poll::Ready(answer.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Closed, "the connection ended before the broker answered")
                .class(RetryClass::Ambiguous))
        }))
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.0 {
            State::Ready(_) => "ready",
            State::Waiting(_) => "waiting",
            State::Running(_) => "running",
        };
        f.debug_tuple("Confirmation").field(&state).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Result<()> {
        Err(Error::new(ErrorKind::TooLarge, "the message is too large"))
    }

    fn kind_and_class(result: Result<()>) -> (ErrorKind, RetryClass) {
        let error = result.expect_err("it failed");
        (error.kind(), error.retry_class())
    }

    #[tokio::test]
    async fn the_answer_arrives() {
        assert!(Confirmation::ready(Ok(())).await.is_ok());
        let result = Confirmation::ready(refused()).await;
        assert_eq!(kind_and_class(result), (ErrorKind::TooLarge, RetryClass::Permanent));

        let (confirmer, confirmation) = Confirmation::channel();
        let waiting = tokio::spawn(confirmation);
        confirmer.confirm(refused());
        let result = waiting.await.expect("it ends");
        assert_eq!(kind_and_class(result), (ErrorKind::TooLarge, RetryClass::Permanent));

        assert!(Confirmation::run(async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_confirmer_leaves_it_open_whether_it_happened() {
        let (confirmer, confirmation) = Confirmation::channel();
        drop(confirmer);
        let result = confirmation.await;
        assert_eq!(kind_and_class(result), (ErrorKind::Closed, RetryClass::Ambiguous));
    }

    #[tokio::test]
    async fn nobody_needs_to_wait_for_the_answer() {
        let (confirmer, confirmation) = Confirmation::channel();
        drop(confirmation);
        confirmer.confirm(Ok(()));
    }

    #[tokio::test]
    async fn a_failure_does_not_turn_into_success_when_asked_again() {
        let (confirmer, waiting) = Confirmation::channel();
        confirmer.confirm(refused());
        let running = Confirmation::run(async { refused() });
        for mut confirmation in [Confirmation::ready(refused()), waiting, running] {
            assert!((&mut confirmation).await.is_err());
            let again = (&mut confirmation).await;
            assert_eq!(kind_and_class(again), (ErrorKind::Closed, RetryClass::Ambiguous));
        }
    }
}
