use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

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
pub struct Confirmer(oneshot::Sender<Result<()>>);

impl Confirmation {
    /// A confirmation that is there already.
    pub fn ready(result: Result<()>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// A confirmation that another task answers.
    pub fn channel() -> (Confirmer, Self) {
        let (sender, receiver) = oneshot::channel();
        (Confirmer(sender), Self(State::Waiting(receiver)))
    }

    /// The answer, when it is there already.
    pub(crate) fn take_ready(&mut self) -> Option<Result<()>> {
        match &mut self.0 {
            State::Ready(result) => result.take(),
            State::Waiting(_) | State::Running(_) => None,
        }
    }

    /// A confirmation that comes from a future. It must own the operation: what it does, it does
    /// only while polled.
    pub fn run(future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(State::Running(Box::pin(future)))
    }
}

impl Confirmer {
    /// Answers the confirmation.
    pub fn confirm(self, result: Result<()>) {
        // Nobody waits any more: the answer is of no use, which is the caller's decision.
        let _ = self.0.send(result);
    }
}

impl Future for Confirmation {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut self.0 {
            State::Ready(result) => result.take().unwrap_or(Ok(())),
            State::Waiting(receiver) => ready!(Pin::new(receiver).poll(cx)).unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Closed,
                    "the connection ended before the broker answered",
                )
                .class(RetryClass::Ambiguous))
            }),
            State::Running(future) => ready!(future.as_mut().poll(cx)),
        })
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
