//! What may have ended its process is handled alone: RabbitMQ counts a crash for all that was out.

use anybroker_core::adapter::{LONGEST_ALONE, suspicious};
use anybroker_core::{Delivery, Subscription};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep};

use crate::consume::{End, Epoch, Reader};
use crate::settle::AT_ONCE;

/// From which return on, or earlier near its limit, a message may be the one that kills its process.
/// What is out beside it comes back as often.
#[derive(Clone, Copy)]
pub(crate) struct Suspicion {
    /// A consumer begins with one message at a time, and widens its window when one comes that is no
    /// suspect, or one takes longer than [`LONGEST_ALONE`]. What kills then, kills alone.
    pub(crate) narrow: u32,
    /// That does not find every suspect: one that is not may come first, as what dead consumers held
    /// comes back in no order of how often. So a consumer that comes upon a suspect in its wide window
    /// narrows it again, once the message has used up half of its deliveries. Not earlier, since to
    /// narrow takes time, and after a crash of the server many messages come back.
    pub(crate) wide: u32,
}

impl Suspicion {
    /// After so many returns a message is a suspect, or earlier where its limit is nearer.
    const SUSPECT: u32 = 2;

    pub(crate) fn of(subscription: &Subscription) -> Self {
        let half = subscription.delivery_limit().map_or(u32::MAX, |limit| limit / 2);
        Self {
            narrow: suspicious(subscription, Self::SUSPECT),
            wide: suspicious(subscription, half.max(Self::SUSPECT)),
        }
    }
}

/// How often a reader looks whether its deliveries are settled.
const GLANCE: Duration = Duration::from_millis(5);

impl Reader {
    /// Adds the rest of the window.
    pub(crate) async fn widen(&self, epoch: &mut Epoch) -> Result<(), End> {
        let more = self.consume(&epoch.channel, self.prefetch - 1).await;
        epoch.streams.consumers.extend(more.map_err(|_| End::Lost)?);
        epoch.narrow = false;
        Ok(())
    }

    /// Gives back what came and no handler has seen, hands out a suspect when all handlers are done,
    /// and goes on with one message at a time when it is settled. A crash meanwhile counts for the
    /// suspect alone.
    ///
    /// Neither wait is longer than [`LONGEST_ALONE`]. What is not settled by then stays beside a new
    /// window.
    pub(crate) async fn narrow(
        &self,
        epoch: &mut Epoch,
        suspect: Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let id = &suspect.envelope().id;
        tracing::debug!(group = %self.source.group.stored, id, "a suspect is handled alone");
        for delivery in self.stop(epoch).await {
            drop(delivery.settle(AT_ONCE));
        }
        if let Err(end) = self.until_settled(epoch, 1, closing).await {
            drop(suspect.settle(AT_ONCE));
            return Err(end);
        }
        self.deliver(suspect, closing).await?;
        self.until_settled(epoch, 0, closing).await?;
        let consumers = self.consume(&epoch.channel, 1).await.map_err(|_| End::Lost)?;
        epoch.streams.consumers.extend(consumers);
        epoch.narrow = true;
        Ok(())
    }

    /// Resolves when no more than so many deliveries are out, or after [`LONGEST_ALONE`].
    pub(crate) async fn until_settled(
        &self,
        epoch: &mut Epoch,
        out: usize,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let end = Instant::now() + LONGEST_ALONE;
        while epoch.settler.gate.outstanding() > out && Instant::now() < end {
            if !epoch.channel.status().connected() {
                return Err(End::Lost);
            }
            tokio::select! {
                biased;
                () = self.inbox.closed() => return Err(End::Closed),
                _ = closing.changed() => return Err(End::Closed),
                Some((delivery, confirmer)) = epoch.released.recv() => {
                    epoch.settler.replace(&delivery, &AT_ONCE, confirmer);
                }
                () = sleep(GLANCE) => {}
            }
        }
        Ok(())
    }
}
