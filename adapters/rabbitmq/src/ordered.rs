//! Hands out the messages of an ordered group.

use std::collections::VecDeque;
use std::future::poll_fn;

use anybroker_core::Delivery;
use futures_util::FutureExt;
use lapin::message;
use tokio::sync::watch;

use crate::consume::{End, Epoch, Reader};
use crate::runs::{copy_id, copy_of};
use crate::settle::AT_ONCE;

/// The most messages that came back and are counted together.
const LOT: usize = 256;

/// A message that is about to be handed out. Dropped before it is, it goes back unseen, and counts no
/// attempt: dropped by itself, it might have been handled.
struct Waiting {
    /// Which of the group's queues it came from.
    queue: usize,
    came_back: bool,
    delivery: Option<Delivery>,
}

impl Waiting {
    fn unsettled(&self) -> u32 {
        self.delivery.as_ref().map_or(0, Delivery::unsettled)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            // It comes back with all that follows when the channel closes.
            drop(delivery.settle(AT_ONCE));
        }
    }
}

impl Reader {
    /// Hands out a message of an ordered queue, and those behind it that came back as well. Each of
    /// them is counted by [`Runs`](crate::runs::Runs) before it is handed out, a suspect alone.
    pub(crate) async fn pass_in_order(
        &self,
        epoch: &mut Epoch,
        message: message::Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let mut waiting = VecDeque::new();
        let mut next = Some(message);
        while let Some(message) = next.take() {
            let queue = epoch.streams.turn;
            if !epoch.settler.gate.pass() {
                // It comes back when the channel closes, which ends the epoch.
                epoch.runs[queue].leave();
                continue;
            }
            let (received, tag) = self.received(message);
            let runs = &epoch.runs[queue];
            let came_back = received.returned > 0;
            let returned = if came_back {
                let id = copy_id(received.hop.as_deref(), &received.envelope);
                runs.of(&id, received.returned).await
            } else {
                runs.is_past_returned();
                0
            };
            if came_back && waiting.len() < LOT {
                next = poll_fn(|cx| epoch.streams.poll_next(cx)).now_or_never().flatten();
            }
            let delivery = epoch.settler.delivery(received, returned, queue, tag);
            waiting.push_back(Waiting { queue, came_back, delivery: Some(delivery) });
        }
        while !waiting.is_empty() {
            let is_suspect =
                |one: &Waiting| one.came_back && one.unsettled() >= self.suspicion.narrow;
            let innocent = waiting.iter().take_while(|one| !is_suspect(one)).count();
            if innocent == 0 {
                self.until_settled(epoch, waiting.len(), closing).await?;
            }
            let mut lot: VecDeque<_> = waiting.drain(..innocent.max(1)).collect();
            for (queue, runs) in epoch.runs.iter().enumerate() {
                let of_queue = lot.iter().filter(|one| one.queue == queue && one.came_back);
                let counted: Vec<_> =
                    of_queue.filter_map(|one| one.delivery.as_ref().map(copy_of)).collect();
                if !counted.is_empty() {
                    runs.hand_out(counted).await;
                }
            }
            while let Some(mut one) = lot.pop_front() {
                if let Some(delivery) = one.delivery.take() {
                    self.deliver(delivery, closing).await?;
                }
            }
            if innocent == 0 {
                self.until_settled(epoch, waiting.len(), closing).await?;
            }
        }
        Ok(())
    }
}
