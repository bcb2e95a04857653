use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower::Service;

use super::idempotency_store::{Begin, Claim, StoreFuture};
use crate::{BoxError, ErrorKind, IdempotencyLayer, Message, Outcome, Result};

pin_project! {
    /// The future of an [`IdempotencyService`](crate::IdempotencyService).
    pub struct IdempotencyFuture<S>
    where
        S: Service<Message>,
    {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S>
    where
        S: Service<Message>,
    {
        Beginning {
            begin: StoreFuture<Begin>,
            layer: Arc<IdempotencyLayer>,
            waiting: Option<(S, Message)>,
        },
        // Dropped in this order: the handler is gone before its key is free.
        Running {
            #[pin]
            handler: S::Future,
            #[pin]
            renewal: Renewal,
            held: Held,
        },
        Settling {
            settled: StoreFuture<()>,
            answer: Option<Result<Outcome, BoxError>>,
        },
    }
}

pin_project! {
    /// Renews the claim of a handler that takes long. Nothing is set up for one that answers when
    /// it is first polled.
    struct Renewal {
        #[pin]
        timer: Option<Sleep>,
        renewing: Option<StoreFuture<()>>,
    }
}

/// A claim that is given up with whoever holds it.
pub(super) struct Held {
    layer: Arc<IdempotencyLayer>,
    claim: Option<Claim>,
}

impl<S: Service<Message>> IdempotencyFuture<S> {
    pub(super) fn begin(
        begin: StoreFuture<Begin>,
        layer: Arc<IdempotencyLayer>,
        ready: S,
        message: Message,
    ) -> Self {
        Self { state: State::Beginning { begin, layer, waiting: Some((ready, message)) } }
    }

    pub(super) fn run(handler: S::Future, held: Held) -> Self {
        Self { state: State::running(handler, held) }
    }

    pub(super) fn answer(outcome: Outcome) -> Self {
        Self { state: State::answer(Ok(outcome)) }
    }
}

impl<S: Service<Message>> State<S> {
    fn running(handler: S::Future, held: Held) -> Self {
        Self::Running { handler, renewal: Renewal { timer: None, renewing: None }, held }
    }

    fn answer(answer: Result<Outcome, BoxError>) -> Self {
        Self::Settling { settled: StoreFuture::ready(Ok(())), answer: Some(answer) }
    }
}

impl<S> Future for IdempotencyFuture<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>>,
{
    type Output = Result<Outcome, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Beginning { begin, layer, waiting } => {
                    let begun = ready!(Pin::new(begin).poll(cx));
                    let (mut inner, message) = waiting.take().expect(POLLED_AGAIN);
                    match layer.decide(begun, &message) {
                        Ok(held) => State::running(inner.call(message), held),
                        Err(outcome) => State::answer(Ok(outcome)),
                    }
                }
                StateProjection::Running { handler, renewal, held } => {
                    let Poll::Ready(answer) = handler.poll(cx) else {
                        renewal.poll(cx, held);
                        return Poll::Pending;
                    };
                    let settled = held.settle(matches!(answer, Ok(Outcome::Ack)));
                    State::Settling { settled, answer: Some(answer.map_err(Into::into)) }
                }
                StateProjection::Settling { settled, answer } => {
                    if let Err(error) = ready!(Pin::new(settled).poll(cx)) {
                        tracing::warn!(%error, "the idempotency store does not know the outcome");
                    }
                    return Poll::Ready(answer.take().expect(POLLED_AGAIN));
                }
            };
            state.set(next);
        }
    }
}

const POLLED_AGAIN: &str = "a future is not polled after it has answered";

impl Renewal {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, held: &mut Held) {
        let mut this = self.project();
        let third = held.layer.lease_time() / 3;
        if this.timer.is_none() {
            this.timer.set(Some(sleep(third)));
        }
        let Some(mut timer) = this.timer.as_pin_mut() else { return };
        while let Some(claim) = &held.claim {
            if let Some(renewing) = this.renewing {
                let Poll::Ready(renewed) = Pin::new(renewing).poll(cx) else { return };
                *this.renewing = None;
                if let Err(error) = renewed {
                    tracing::warn!(%error, key = %claim.key(), "an idempotency claim was not renewed");
                    if error.kind() == ErrorKind::StaleDelivery {
                        // The handler cannot be undone, and its claim is not its own any more.
                        held.claim = None;
                        return;
                    }
                }
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            *this.renewing = Some(held.layer.store().renew(claim, held.layer.lease_time()));
            timer.as_mut().reset(Instant::now() + third);
        }
    }
}

impl Held {
    pub(super) fn new(layer: Arc<IdempotencyLayer>, claim: Claim) -> Self {
        Self { layer, claim: Some(claim) }
    }

    fn settle(&mut self, done: bool) -> StoreFuture<()> {
        let store = self.layer.store();
        match self.claim.take() {
            Some(claim) if done => store.complete(claim, self.layer.ttl_time()),
            Some(claim) => store.abandon(claim),
            None => StoreFuture::ready(Ok(())),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The store abandons it whether or not anybody waits.
        drop(self.settle(false));
    }
}

impl<S: Service<Message>> fmt::Debug for IdempotencyFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Beginning { .. } => "beginning",
            State::Running { .. } => "running",
            State::Settling { .. } => "settling",
        };
        f.debug_tuple("IdempotencyFuture").field(&state).finish()
    }
}
