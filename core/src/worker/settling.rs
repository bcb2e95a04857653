use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::leases::LeaseSlot;
use super::report::Report;
use crate::{Confirmation, Outcome, Result};

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

/// A settlement that the broker has yet to answer; it keeps its lease until then.
pub(super) struct Settling {
    kind: Kind,
    lease: LeaseSlot,
    confirmation: Confirmation,
}

impl Settling {
    pub(super) fn new(kind: Kind, lease: LeaseSlot, confirmation: Confirmation) -> Self {
        Self { kind, lease, confirmation }
    }
}

impl Future for Settling {
    type Output = (Kind, LeaseSlot, Result<()>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.confirmation).poll(cx));
        Poll::Ready((self.kind, self.lease, result))
    }
}
