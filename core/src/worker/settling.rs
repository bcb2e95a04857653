use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, Sleep, sleep};

use super::leases::LeaseSlot;
use super::report::Report;
use crate::{Confirmation, Envelope, Error, ErrorKind, Outcome, Result};

/// How a settlement counts in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Handled,
    Retried,
    DeadLettered,
    Released,
    Discarded,
    /// Stored for later; counted elsewhere or not at all.
    Delayed,
}

impl Kind {
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ack => Self::Handled,
            Outcome::Retry { .. } => Self::Retried,
            Outcome::DeadLetter { .. } => Self::DeadLettered,
            Outcome::Release { .. } => Self::Released,
        }
    }

    pub(super) fn count(self, report: &mut Report) {
        match self {
            Self::Handled => report.handled += 1,
            Self::Retried => report.retried += 1,
            Self::DeadLettered => report.dead_lettered += 1,
            Self::Released => report.released += 1,
            Self::Discarded => report.discarded += 1,
            Self::Delayed => {}
        }
    }
}

/// How long the broker has at least to answer a settlement, and at most twice as long.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// The settlements that the broker has yet to answer; they keep their leases until then.
///
/// One that is not answered in time counts as failed: it may have happened or not, and if not the
/// message comes again, since nobody renews its lease any more. Looking at all of them once in a
/// while costs the others nothing; a timer for each would.
pub(super) struct Settlements {
    open: FuturesUnordered<Settling>,
    overdue: Vec<Settling>,
    round: u64,
    next_round: Option<Pin<Box<Sleep>>>,
}

struct Settling {
    kind: Kind,
    lease: LeaseSlot,
    confirmation: Confirmation,
    /// Whose it is; unknown for the first, before it is known that the broker takes its time.
    envelope: Option<Arc<Envelope>>,
    round: u64,
}

/// A settlement that has ended.
pub(super) type Settled = (Kind, LeaseSlot, Result<()>);

impl Settlements {
    pub(super) fn new() -> Self {
        let open = FuturesUnordered::new();
        Self { open, overdue: Vec::new(), round: 0, next_round: None }
    }

    /// Whether the broker takes its time to answer.
    pub(super) fn are_awaited(&self) -> bool {
        self.next_round.is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len() + self.overdue.len()
    }

    pub(super) fn push(
        &mut self,
        kind: Kind,
        lease: LeaseSlot,
        confirmation: Confirmation,
        envelope: Option<Arc<Envelope>>,
    ) {
        let round = self.round;
        self.open.push(Settling { kind, lease, confirmation, envelope, round });
    }

    /// The next one that was answered, or should have been; pending while there is none.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Settled> {
        if let Poll::Ready(Some(settled)) = self.open.poll_next_unpin(cx) {
            return Poll::Ready(settled);
        }
        if !self.open.is_empty() {
            self.poll_round(cx);
        }
        self.overdue.pop().map_or(Poll::Pending, |overdue| Poll::Ready(overdue.give_up()))
    }

    fn poll_round(&mut self, cx: &mut Context<'_>) {
        let next = self.next_round.get_or_insert_with(|| Box::pin(sleep(ANSWER_TIMEOUT)));
        while next.as_mut().poll(cx).is_ready() {
            next.as_mut().reset(Instant::now() + ANSWER_TIMEOUT);
            let before = self.round;
            self.round += 1;
            // Those of the round that ends now may be young.
            for settling in std::mem::take(&mut self.open) {
                if settling.round < before {
                    self.overdue.push(settling);
                } else {
                    self.open.push(settling);
                }
            }
            // What was put back wants to be polled once more, to be woken again.
            cx.waker().wake_by_ref();
        }
    }
}

impl Settling {
    fn give_up(self) -> Settled {
        let whose = self.envelope.map_or_else(String::new, |of| format!(" of message {:?}", of.id));
        let text = format!(
            "the broker did not answer the settlement{whose} ({:?}) within {ANSWER_TIMEOUT:?}; unless it took effect the message comes again",
            self.kind
        );
        (self.kind, self.lease, Err(Error::new(ErrorKind::Timeout, text).operation("settle")))
    }
}

impl Future for Settling {
    type Output = Settled;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.confirmation).poll(cx));
        Poll::Ready((self.kind, self.lease, result))
    }
}
