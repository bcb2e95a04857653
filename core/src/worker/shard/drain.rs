//! How a shard ends: nothing new, what runs may finish, the rest is given back.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tower::Service;

use super::{Held, Shard};
use crate::worker::FLUSH_TIMEOUT;
use crate::worker::settling::Kind;
use crate::{BoxError, Message, Outcome};

impl<S> Shard<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>> + Clone,
{
    pub(super) async fn drain(&mut self, drain_timeout: Duration) {
        self.draining = true;
        let deadline = Instant::now() + drain_timeout;
        self.give_back();
        let finished = poll_fn(|cx| {
            self.slots.register(cx.waker());
            while self.poll_finished() || self.poll_settling(cx) {}
            if self.slots.running() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        if timeout_at(deadline, finished).await.is_err() {
            let cut = self.slots.cancel_all();
            tracing::warn!(
                handlers = cut.len(),
                "handlers did not finish within the drain timeout"
            );
            for held in cut {
                let next =
                    self.settle(held, Outcome::Release { after: Duration::ZERO }, Kind::Released);
                self.admit(next);
            }
        }
        // What became free in the lanes while the last handlers finished.
        self.give_back();
        let settled = poll_fn(|cx| {
            self.poll_settling(cx);
            if self.settling.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        if timeout(FLUSH_TIMEOUT, settled).await.is_err() {
            let open = self.settling.len() as u64;
            tracing::warn!(open, "settlements were not answered; the messages may come again");
            self.report.unsettled += open;
        }
        match timeout(FLUSH_TIMEOUT, self.source.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the consumer did not close cleanly"),
            Err(_) => tracing::warn!("the consumer did not close in time"),
        }
    }

    /// Gives back what no handler is running.
    fn give_back(&mut self) {
        let mut untouched: Vec<Held> = self.queue.drain(..).collect();
        if let Some(lanes) = &mut self.lanes {
            untouched.extend(lanes.drain());
        }
        for held in untouched {
            let next =
                self.settle(held, Outcome::Release { after: Duration::ZERO }, Kind::Released);
            self.admit(next);
        }
        let now = Instant::now();
        for (due, held, counted) in self.parked.drain() {
            let after = due.saturating_duration_since(now);
            let (outcome, kind) = if counted {
                // The failed attempt was counted in the report when it was parked.
                (Outcome::Retry { after }, Kind::Delayed)
            } else {
                (Outcome::Release { after }, Kind::Released)
            };
            let next = self.settle(held, outcome, kind);
            self.admit(next);
        }
    }
}
