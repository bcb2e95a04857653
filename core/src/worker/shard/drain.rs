//! How a shard ends: nothing new, what runs may finish, the rest is given back.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::{Instant, timeout, timeout_at};
use tower::Service;

use super::{Held, LONGEST_WAIT, Shard};
use crate::worker::FLUSH_TIMEOUT;
use crate::worker::parked::Wait;
use crate::worker::settling::Kind;
use crate::{BoxError, Message, Outcome};

pub(super) const AT_ONCE: Outcome = Outcome::Release { after: Duration::ZERO };

impl<S> Shard<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>> + Clone,
{
    /// The consumer closes while handlers finish, so that others of the group get what comes.
    pub(super) async fn drain(&mut self, drain_timeout: Duration) {
        let end = Instant::now() + drain_timeout.min(LONGEST_WAIT);
        self.draining = true;
        let (closing, is_last) = (self.source.close(), self.source.drained());
        let closed = match select(closing, pin!(self.finish_all(end))).await {
            Either::Left((closed, finishing)) => {
                finishing.await;
                Ok(closed)
            }
            // Others still have what the end of the consumer waits for.
            Either::Right(_) if !is_last() => return,
            Either::Right(((), closing)) => timeout(FLUSH_TIMEOUT, closing).await,
        };
        match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the consumer did not close cleanly"),
            Err(_) => tracing::warn!("the consumer did not close in time"),
        }
    }

    async fn finish_all(&mut self, end: Instant) {
        // In order, what waits for its key follows what runs: brokers hand out again in the order
        // in which they get back.
        if self.lanes.is_none() {
            self.give_back();
        }
        let finished = poll_fn(|cx| {
            self.slots.register(cx.waker());
            loop {
                let now = Instant::now();
                self.resume(Some(now));
                let progress = self.poll_finished() | self.poll_settling(cx) | self.end_waits(now);
                if self.slots.running() == 0 && !self.awaits_wait(end) {
                    return Poll::Ready(());
                }
                if !progress && self.poll_timer(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        });
        if timeout_at(end, finished).await.is_err() {
            let cut = self.slots.cancel_all();
            tracing::warn!(
                handlers = cut.len(),
                "handlers did not finish within the drain timeout"
            );
            for held in cut {
                let next = self.settle(held, AT_ONCE, Kind::Released);
                self.admit(next);
            }
        }
        self.give_back();
        let settled = poll_fn(|cx| {
            self.poll_settling(cx);
            if self.settling.len() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        if timeout(FLUSH_TIMEOUT, settled).await.is_err() {
            let open = self.settling.len() as u64;
            tracing::warn!(open, "settlements were not answered; the messages may come again");
            self.report.unsettled += open;
        }
    }

    /// Whether something waits until before the drain's end for what the broker would forget.
    fn awaits_wait(&self, end: Instant) -> bool {
        !self.keeps_waits && self.parked.is_any_due_by(end)
    }

    /// Gives back what has waited long enough.
    fn end_waits(&mut self, now: Instant) -> bool {
        let mut progress = false;
        while let Some((held, wait)) = self.parked.pop_due(now) {
            self.end_wait(held, wait, Duration::ZERO);
            progress = true;
        }
        progress
    }

    /// Gives back what was to wait for so much longer.
    fn end_wait(&mut self, mut held: Held, wait: Wait, after: Duration) {
        // What the handler answered was counted in the report when it was parked.
        let (outcome, kind) = match wait {
            Wait::Retry if self.keeps_waits => (Outcome::Retry { after }, Kind::Delayed),
            // A copy for the retry would lose its place.
            Wait::Retry => {
                held.delivery.count_attempt();
                (AT_ONCE, Kind::Delayed)
            }
            Wait::Release if self.keeps_waits => (Outcome::Release { after }, Kind::Delayed),
            Wait::Release => (AT_ONCE, Kind::Delayed),
            Wait::Early if self.keeps_waits => (Outcome::Release { after }, Kind::Released),
            Wait::Early | Wait::GiveBack => (AT_ONCE, Kind::Released),
        };
        let next = self.settle(held, outcome, kind);
        self.admit(next);
    }

    /// Gives back what no handler is running.
    pub(super) fn give_back(&mut self) {
        let now = Instant::now();
        // What follows in a lane is queued, or parked, when the one before it is settled.
        while !(self.parked.is_empty() && self.queue.is_empty()) {
            let parked: Vec<_> = self.parked.drain().collect();
            for (due, held, wait) in parked {
                self.end_wait(held, wait, due.saturating_duration_since(now));
            }
            while let Some(held) = self.queue.pop_front() {
                let next = self.settle(held, AT_ONCE, Kind::Released);
                self.admit(next);
            }
        }
    }
}
