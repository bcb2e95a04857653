use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::adapter::LONGEST_ALONE;
use anybroker_core::{Delivery, Envelope, Hop, Result};
use futures_util::FutureExt;
use lapin::message;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::consume::{End, Epoch, Reader};
use crate::error::failed;
use crate::group::{Group, runs};
use crate::link::apart;
use crate::message::Received;
use crate::publish::{Publishers, Target};
use crate::settle::AT_ONCE;
use crate::topology::{Helper, Topology, short};

/// How often the messages of an ordered queue were handed out again after they had come back.
///
/// RabbitMQ's own count says only that a message came back: a crash of the server returns it once for
/// each dead consumer in line. So the runs are counted in a queue of its own that keeps one
/// message, the last, and they are written before a message is handed out again.
/// The one active consumer of the queue reads and writes it.
pub(crate) struct Runs {
    topology: Arc<Topology>,
    publishers: Arc<Publishers>,
    group: Arc<Group>,
    queue: String,
    /// What former consumers wrote, as far as its messages may still come; `None` until it is read.
    former: Option<HashMap<String, u32>>,
    /// What came to this one.
    own: HashMap<String, u32>,
}

impl Runs {
    pub(crate) fn new(
        topology: &Arc<Topology>,
        publishers: &Arc<Publishers>,
        group: &Arc<Group>,
        queue: &str,
    ) -> Self {
        Self {
            topology: Arc::clone(topology),
            publishers: Arc::clone(publishers),
            group: Arc::clone(group),
            queue: queue.to_owned(),
            former: None,
            own: HashMap::new(),
        }
    }

    /// A message came that never came back: all that did had come before it.
    fn is_past_returned(&mut self) {
        if let Some(former) = &mut self.former {
            former.clear();
        }
    }

    /// How often a message that came back was handed out: once before it was counted here, and as
    /// often as was written since.
    async fn of(&mut self, id: &str) -> u32 {
        if self.former.is_none() {
            // A count that cannot be read is too low, which repeats a message more often.
            let read = read(&self.topology, &self.queue).await.unwrap_or_else(|error| {
                tracing::warn!(%error, queue = %self.queue, "the attempts of what came back are not known");
                HashMap::new()
            });
            self.former = Some(read);
        }
        let written = self.own.get(id).or_else(|| self.former.as_ref()?.get(id));
        written.copied().unwrap_or(0).saturating_add(1)
    }

    /// Writes that these messages, which came back, are handed out again.
    async fn hand_out(&mut self, ids: Vec<String>) {
        for id in ids {
            let written = self.former.as_mut().and_then(|former| former.remove(&id));
            let own = self.own.entry(id).or_insert(0);
            *own = (*own).max(written.unwrap_or(0)).saturating_add(1);
        }
        if let Err(error) = self.write().await {
            tracing::warn!(%error, queue = %self.queue, "attempts were not stored; a crash now repeats them");
        }
    }

    async fn write(&self) -> Result<()> {
        let all = self.former.iter().flatten().chain(&self.own);
        let all: serde_json::Map<_, _> =
            all.map(|(id, runs)| (id.clone(), (*runs).into())).collect();
        let record = Envelope::new("anybroker.runs", serde_json::Value::Object(all).to_string());
        let helper = Helper::Runs { queue: self.queue.clone() };
        let target = Target::helper(&self.group, helper)?;
        self.publishers.send(target, record, Hop::default()).await
    }
}

/// How often it is looked whether the others are done.
const LOOK: Duration = Duration::from_millis(5);

/// The most messages that came back and are counted together.
const LOT: usize = 256;

/// A message that is about to be handed out.
struct Waiting {
    /// Which of the group's queues it came from.
    queue: usize,
    /// What it is counted by, if it came back.
    id: Option<String>,
    delivery: Delivery,
}

impl Reader {
    /// Hands out a message of an ordered queue, and those behind it that came back as well. Each of
    /// them is counted by [`Runs`] before it is handed out, a suspect alone.
    pub(crate) async fn pass_in_order(
        &self,
        epoch: &mut Epoch,
        message: message::Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let mut waiting = VecDeque::new();
        let mut next = Some(message);
        while let Some(message) = next.take() {
            if !epoch.settler.gate.pass() {
                // It comes back when the channel closes, which ends the epoch.
                continue;
            }
            let queue = epoch.streams.turn;
            let (received, tag) = self.received(message);
            let runs = &mut epoch.runs[queue];
            let (id, returned) = if received.returned == 0 {
                runs.is_past_returned();
                (None, 0)
            } else {
                let id = id(&received);
                let returned = runs.of(&id).await;
                (Some(id), returned)
            };
            if id.is_some() && waiting.len() < LOT {
                next = poll_fn(|cx| epoch.streams.poll_next(cx)).now_or_never().flatten();
            }
            let delivery = epoch.settler.delivery(received, returned, tag);
            waiting.push_back(Waiting { queue, id, delivery });
        }
        while !waiting.is_empty() {
            let is_suspect =
                |one: &Waiting| one.id.is_some() && one.delivery.unsettled() >= self.suspicious;
            let innocent = waiting.iter().take_while(|one| !is_suspect(one)).count();
            if innocent == 0 {
                self.finished_but(waiting.len(), epoch, closing).await?;
            }
            let lot: Vec<_> = waiting.drain(..innocent.max(1)).collect();
            for (queue, runs) in epoch.runs.iter_mut().enumerate() {
                let of_queue = lot.iter().filter(|one| one.queue == queue);
                let counted: Vec<_> = of_queue.filter_map(|one| one.id.clone()).collect();
                if !counted.is_empty() {
                    runs.hand_out(counted).await;
                }
            }
            for one in lot {
                self.deliver(one.delivery, closing).await?;
            }
            if innocent == 0 {
                self.finished_but(waiting.len(), epoch, closing).await?;
            }
        }
        Ok(())
    }

    /// Resolves when no more than `count` deliveries are handled, or after [`LONGEST_ALONE`].
    async fn finished_but(
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
}

/// What tells a stored copy from others.
fn id(received: &Received) -> String {
    let hop = received.hop.as_ref().and_then(|hop| hop.id.clone());
    hop.unwrap_or_else(|| received.envelope.id.clone())
}

async fn read(topology: &Arc<Topology>, queue: &str) -> Result<HashMap<String, u32>> {
    let name = runs(queue);
    if topology.count(&name).await?.is_none() {
        return Ok(HashMap::new());
    }
    let channel = topology.link.channel("consume").await?;
    let queue = short(&name)?;
    let found = apart(async move {
        let found = channel.basic_get(queue, BasicGetOptions::default()).await;
        let found = found.map_err(|error| failed("consume", "reading the attempts", error))?;
        let back = BasicNackOptions { requeue: true, multiple: true };
        let back = channel.basic_nack(0, back).await;
        back.map_err(|error| failed("consume", "putting back the attempts", error))?;
        // Closed here, so that it is back before anything else is written.
        let _ = channel.close(200, "OK".into()).await;
        Ok(found)
    });
    let Some(found) = found.await? else { return Ok(HashMap::new()) };
    Ok(serde_json::from_slice(&found.data).unwrap_or_default())
}
