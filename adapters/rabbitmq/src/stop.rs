//! Ends the consumer of an unordered group, so that nothing counts as an attempt that no handler saw.

use std::future::poll_fn;
use std::time::Duration;

use anybroker_core::Delivery;
use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicGetOptions, BasicQosOptions};
use tokio::time::{Instant, timeout};

use crate::acks::SETTLING;
use crate::consume::{Epoch, Reader};
use crate::message::property;

/// How long nothing must come before a consumer is cancelled, and how long that may take. Until its
/// acknowledgements are applied, a queue sends more than the window seems to have room for.
const QUIET: Duration = SETTLING;
const LONGEST_END: Duration = Duration::from_secs(2);

impl Reader {
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
