//! How deliveries get into a shard, and what becomes of those that no handler sees yet.

use std::cmp::Ordering;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use super::drain::AT_ONCE;
use super::{Held, LONGEST_PARKED, Shard};
use crate::worker::lanes::Lanes;
use crate::worker::parked::Wait;
use crate::worker::policy;
use crate::worker::settling::Kind;
use crate::worker::source::Received;
use crate::{BoxError, ErrorKind, Message, Outcome, Result};

/// How long after the window became smaller what was read ahead goes back. Until then handlers may
/// take it, or ask for as much again.
const NARROW_AFTER: Duration = Duration::from_secs(2);

/// What is to be done with a delivery before a handler sees it.
enum Admission {
    Run,
    Wait(Instant),
    Settle(Outcome, Kind),
}

impl<S> Shard<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>> + Clone,
{
    /// Takes in as much as there is room for.
    ///
    /// A consumer that waits for deliveries when there is room no more is asked for none: it may
    /// have been woken for a message that another one of the group has room for.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        budget: &mut usize,
    ) -> Poll<Result<()>> {
        let room = self.room();
        if room == 0 && !self.awaiting {
            return Poll::Pending;
        }
        ready!(self.poll_source(cx, room))?;
        // Nothing at all counts too, or a consumer that answers so keeps the thread for itself.
        *budget = budget.saturating_sub(self.received.len().max(1));
        let mut received = std::mem::take(&mut self.received);
        let bytes = received.iter().map(|delivery| delivery.envelope().payload.len()).sum();
        self.window.receive(received.len(), bytes);
        let waits_until = self.lanes.is_some().then(|| Instant::now() + self.longest_ordered_wait);
        for delivery in received.drain(..) {
            let lease = self.leases.hold(delivery.tag());
            self.enter(Held { delivery, lease, consumer: self.consumer, waits_until });
        }
        self.received = received;
        Poll::Ready(Ok(()))
    }

    /// Receives up to so many deliveries into `received`.
    fn poll_source(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Result<()>> {
        let received = self.source.poll_receive(cx, room, &mut self.received);
        self.awaiting = room > 0 && received.is_pending();
        match ready!(received) {
            Ok(Received::Deliveries) => self.receive_failures = 0,
            Ok(Received::Opened(lease)) => {
                self.consumer = self.consumer.wrapping_add(1);
                self.leases.renew_with(lease);
                self.leave_former();
            }
            Err(error) if error.kind() == ErrorKind::Closed => return Poll::Ready(Err(error)),
            Err(error) => {
                tracing::warn!(%error, subscription = %self.subscription.stored_name(), "receiving failed");
                self.receive_failures = self.pause(self.receive_failures);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How many deliveries to take.
    fn room(&self) -> usize {
        if self.paused_until.is_some() || !self.queue.is_empty() {
            return 0;
        }
        let waiting = self.lanes.as_ref().map_or(0, Lanes::len);
        let held = self.slots.running() + waiting + self.parked.len();
        self.slots.free().min(self.window.most_held().saturating_sub(held))
    }

    /// Asks for as many deliveries as are of use now.
    pub(super) fn fit_window(&mut self, now: Option<Instant>) {
        if let Some(now) = now
            && (self.window.is_sampled() || self.window.next_look().is_some_and(|at| at <= now))
        {
            self.window.look(now);
        }
        self.window.set_parked(self.parked.len());
        if self.source.ask_for(self.window.wanted()) == Ordering::Less {
            self.narrow_at = Some(Instant::now() + NARROW_AFTER);
        }
    }

    /// Gives back what the consumer has read ahead, some time after the window became smaller and if
    /// all handlers are busy: another process may have handlers that are free.
    ///
    /// # Errors
    /// Those of [`poll_receive`](Self::poll_receive).
    pub(super) fn narrow(&mut self, cx: &mut Context<'_>, now: Option<Instant>) -> Result<()> {
        if self.narrow_at.is_none_or(|at| now.is_none_or(|now| now < at)) {
            return Ok(());
        }
        self.narrow_at = None;
        if self.slots.free() > 0 || !self.queue.is_empty() || self.paused_until.is_some() {
            return Ok(());
        }
        if let Poll::Ready(received) = self.poll_source(cx, self.window.most_held()) {
            received?;
        }
        // Asked for none now, the consumer waits no more; see `poll_receive`.
        self.awaiting = true;
        let mut ahead = std::mem::take(&mut self.received);
        for delivery in ahead.drain(..) {
            let lease = self.leases.hold(delivery.tag());
            let held = Held { delivery, lease, consumer: self.consumer, waits_until: None };
            let next = self.settle(held, AT_ONCE, Kind::Delayed);
            self.admit(next);
        }
        self.received = ahead;
        Ok(())
    }

    /// Lets go of what waits and is lost with the former consumer; the rest is handled. In order it
    /// goes back: what follows it comes to nobody as long as it is held.
    fn leave_former(&mut self) {
        for (mut held, wait) in self.parked.take_lost() {
            if wait == Wait::Retry {
                held.delivery.count_attempt();
            }
            self.give_up(held);
        }
        if self.lanes.is_some() {
            self.give_back();
        }
    }

    /// Takes a new delivery in: into its key's lane when that is busy.
    fn enter(&mut self, held: Held) {
        let Some(lanes) = &mut self.lanes else { return self.admit(Some(held)) };
        let envelope = Arc::clone(held.delivery.envelope());
        let next = lanes.enter(envelope.key.as_deref(), held);
        self.admit(next);
    }

    /// Queues, parks or settles a delivery, and those of its lane that follow a settled one.
    pub(super) fn admit(&mut self, mut next: Option<Held>) {
        while let Some(held) = next.take() {
            match self.admission(&held) {
                Admission::Run => self.queue.push_back(held),
                Admission::Wait(due) => self.parked.push(due, held, Wait::Early),
                Admission::Settle(outcome, kind) => next = self.settle_unseen(held, outcome, kind),
            }
        }
    }

    /// Settles what no handler has seen this time, which is no attempt.
    fn settle_unseen(&mut self, mut held: Held, outcome: Outcome, kind: Kind) -> Option<Held> {
        if matches!(outcome, Outcome::DeadLetter { .. }) {
            held.delivery.uncount_attempt();
        }
        self.settle(held, outcome, kind)
    }

    fn admission(&self, held: &Held) -> Admission {
        let delivery = &held.delivery;
        let unsettled = delivery.unsettled();
        // Only what came back without an outcome may have ended its process; one whose attempts
        // failed has its end when the last of them fails.
        if unsettled > 0
            && self.subscription.delivery_limit().is_some_and(|limit| unsettled >= limit)
        {
            return Admission::Settle(policy::too_many_deliveries(unsettled), Kind::DeadLettered);
        }
        if let Some(not_before) = delivery.hop().not_before
            && let Ok(remaining) = not_before.duration_since(crate::now())
            && !remaining.is_zero()
        {
            let limit = self.subscription.delay_limit();
            if remaining > limit {
                let outcome = policy::too_far_ahead(remaining, limit);
                return Admission::Settle(outcome, Kind::DeadLettered);
            }
            return if self.parks(remaining, held.waits_until) {
                Admission::Wait(Instant::now() + remaining)
            } else {
                Admission::Settle(Outcome::Release { after: remaining }, Kind::Delayed)
            };
        }
        if delivery.envelope().expires.is_some() && delivery.envelope().is_expired() {
            let (outcome, kind) = policy::expired(self.subscription.expired_policy());
            return Admission::Settle(outcome, kind);
        }
        Admission::Run
    }

    /// In an ordered subscription, lets the broker keep what is due last, while what waits here
    /// leaves the free handlers too little room: waiting for its time, it would keep everything else
    /// from being received. It is stored anew where the broker cannot keep its place for so long, and
    /// then later messages of its key pass it.
    pub(super) fn set_aside(&mut self) -> bool {
        let mut progress = false;
        while let Some(lanes) = &self.lanes
            && lanes.len() + self.parked.len() > self.window.most_parked()
            && self.parked.has_early()
            && self.slots.free() > 0
            && self.queue.is_empty()
            && self.paused_until.is_none()
        {
            let now = Instant::now();
            let Some((due, held)) = self.parked.take_latest_early(now + LONGEST_PARKED) else {
                break;
            };
            let after = due.saturating_duration_since(now);
            let next = self.settle(held, Outcome::Release { after }, Kind::Delayed);
            self.admit(next);
            progress = true;
        }
        progress
    }

    /// Moves what has waited long enough to the head of the queue.
    pub(super) fn unpark(&mut self, now: Option<Instant>) -> bool {
        let mut progress = false;
        while let Some(now) = now
            && let Some((mut held, wait)) = self.parked.pop_due(now)
        {
            progress = true;
            if wait == Wait::Retry {
                held.delivery.count_attempt();
            }
            let admission = match wait {
                Wait::GiveBack => Admission::Settle(AT_ONCE, Kind::Released),
                _ => self.admission(&held),
            };
            match admission {
                Admission::Run => self.queue.push_front(held),
                Admission::Wait(due) => self.parked.push(due, held, Wait::Early),
                Admission::Settle(outcome, kind) => {
                    let next = self.settle_unseen(held, outcome, kind);
                    self.admit(next);
                }
            }
        }
        progress
    }
}
