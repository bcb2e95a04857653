//! A message that may have killed its process is handed out alone.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use anybroker_core::Delivery;
use anybroker_core::adapter::LONGEST_ALONE;
use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicGetOptions, BasicQosOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::acks::SETTLING;
use crate::consume::{End, Epoch, Reader};
use crate::message::property;
use crate::settle::AT_ONCE;

/// From which return on, or earlier near its limit, a message may be the one that kills its process.
pub(crate) const SUSPECT: u32 = 2;

/// How often it is looked whether the others are done.
const LOOK: Duration = Duration::from_millis(5);

/// How long nothing must come before a consumer is cancelled, and how long that may take. Until its
/// acknowledgements are applied, a queue sends more than the window seems to have room for.
const QUIET: Duration = SETTLING;
const LONGEST_END: Duration = Duration::from_secs(2);

impl Reader {
    /// Hands out a suspect while nothing else of this consumer is handled or on its way, so that a
    /// crash counts for it alone.
    pub(crate) async fn hand_out_alone(
        &self,
        epoch: &mut Epoch,
        suspect: Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        if !epoch.narrow
            && let Err(end) = self.clear(epoch, closing).await
        {
            drop(suspect.settle(AT_ONCE));
            return Err(end);
        }
        self.deliver(suspect, closing).await?;
        self.finished_but(0, epoch, closing).await?;
        if epoch.narrow {
            // It takes long: others go on beside it.
            return if epoch.settler.gate.outstanding() > 0 {
                self.widen(epoch).await
            } else {
                Ok(())
            };
        }
        // One after the other, as long as suspects come: then nothing is on its way beside one.
        let consumers = self.consume(&epoch.channel, 1).await;
        epoch.streams.consumers = consumers.map_err(|_| End::Lost)?;
        epoch.narrow = true;
        Ok(())
    }

    /// Waits until only a suspect is in hand: others are finished, and what came meanwhile is given
    /// back.
    async fn clear(
        &self,
        epoch: &mut Epoch,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let mut held = Vec::new();
        let end = Instant::now() + LONGEST_ALONE;
        let mut result = Ok(());
        while epoch.settler.gate.outstanding() > held.len() + 1 && Instant::now() < end {
            let Epoch { streams, settler, released, .. } = &mut *epoch;
            tokio::select! {
                biased;
                () = self.inbox.closed() => result = Err(End::Closed),
                _ = closing.changed() => result = Err(End::Closed),
                Some((delivery, confirmer)) = released.recv() => {
                    settler.replace(&delivery, &AT_ONCE, confirmer);
                }
                message = poll_fn(|cx| streams.poll_next(cx)) => match message {
                    Some(message) => held.push(self.hold(message, settler)),
                    None => result = Err(End::Lost),
                },
                () = sleep(LOOK) => {}
            }
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            held.extend(self.stop(epoch).await);
        }
        for held in held {
            // If that fails, it comes back when the channel closes.
            drop(held.settle(AT_ONCE));
        }
        result?;
        self.finished_but(1, epoch, closing).await?;
        // Else a crash would bring back what was given back as well.
        sleep(SETTLING).await;
        Ok(())
    }

    /// Resolves when no more than `count` deliveries are handled, or after [`LONGEST_ALONE`].
    pub(crate) async fn finished_but(
        &self,
        count: usize,
        epoch: &mut Epoch,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let mut closed = pin!(self.inbox.closed());
        let end = Instant::now() + LONGEST_ALONE;
        while epoch.settler.gate.outstanding() > count && Instant::now() < end {
            if !epoch.channel.status().connected() {
                return Err(End::Lost);
            }
            tokio::select! {
                biased;
                () = &mut closed => return Err(End::Closed),
                _ = closing.changed() => return Err(End::Closed),
                Some((delivery, confirmer)) = epoch.released.recv() => {
                    epoch.settler.replace(&delivery, &AT_ONCE, confirmer);
                }
                () = sleep(LOOK) => {}
            }
        }
        Ok(())
    }

    /// Cancels what an unordered group consumes, and returns what came and was not handed out.
    ///
    /// What is on its way when a consumer is cancelled would come for nobody, and count as an
    /// attempt when the channel closes. While nothing is settled, nothing is on its way as soon as
    /// the window is full, or the queue empty: then nothing comes for a while.
    pub(crate) async fn stop(&self, epoch: &mut Epoch) -> Vec<Delivery> {
        let paused = epoch.settler.pause().await;
        let mut held = Vec::new();
        let Epoch { channel, streams, settler, narrow, .. } = &mut *epoch;
        let window = if *narrow { 1 } else { self.prefetch };
        let end = Instant::now() + LONGEST_END;
        while settler.gate.outstanding() < window && Instant::now() < end {
            match timeout(QUIET, poll_fn(|cx| streams.poll_next(cx))).await {
                Ok(Some(message)) => held.push(self.hold(message, settler)),
                Ok(None) | Err(_) => break,
            }
        }
        // The queue answers a get after all that it sent before, and the channel a second question
        // after it has passed that on.
        for queue in &self.source.group.queues {
            let got = channel.basic_get(property(queue), BasicGetOptions::default()).await;
            if let Ok(Some(got)) = got {
                held.push(self.hold(got.delivery, settler));
            }
        }
        let _ = channel.basic_qos(1, BasicQosOptions::default()).await;
        for consumer in &streams.consumers {
            // If it fails, the channel is gone, and with it the consumer.
            let _ = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
        }
        for mut consumer in streams.consumers.drain(..) {
            while let Some(Ok(message)) = consumer.next().await {
                held.push(self.hold(message, settler));
            }
        }
        drop(paused);
        held
    }
}
