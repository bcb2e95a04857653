use std::sync::Arc;

use anybroker_core::{DeadLetter, DeadLetterFilter, Envelope, Hop, Peek, Redrive, Result, now};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::ShortString;
use lapin::{Channel, message};

use crate::error::{failed, not_found};
use crate::group::Group;
use crate::link::apart;
use crate::message::read;
use crate::publish::{Publishers, Target};
use crate::topology::{Topology, short};

/// What a group gave up, seen through a channel of its own: whatever happens to it, what it took
/// and did not acknowledge is back in its place when it closes.
pub(crate) struct DeadLetters {
    group: Arc<Group>,
    queue: ShortString,
    channel: Channel,
    /// How many are left of those that were there at the first look; what comes later is left
    /// alone.
    left: Option<u32>,
}

impl DeadLetters {
    /// Looks for the dead letters of a group, and declares nothing; `None` where the group has no
    /// queue for them yet.
    ///
    /// # Errors
    /// `NotFound` where there is no such group.
    pub(crate) async fn find(
        topology: &Topology,
        group: Arc<Group>,
        operation: &'static str,
    ) -> Result<Option<Self>> {
        for queue in &group.queues {
            if topology.count(queue).await?.is_none() {
                return Err(not_found(operation, queue));
            }
        }
        let queue = group.dead_letters();
        if topology.count(&queue).await?.is_none() {
            return Ok(None);
        }
        let channel = topology.link.channel(operation).await?;
        Ok(Some(Self { queue: short(&queue)?, group, channel, left: None }))
    }

    pub(crate) async fn peek(mut self, filter: &DeadLetterFilter, limit: usize) -> Result<Peek> {
        let mut entries = Vec::new();
        while entries.len() < limit
            && let Some(message) = self.next(false).await?
        {
            let (envelope, hop) = self.read(message);
            if filter.matches(&envelope, &hop, now()) {
                entries.push(DeadLetter { envelope: Arc::new(envelope), hop });
            }
        }
        let complete = self.left == Some(0);
        self.end().await?;
        Ok(Peek { entries, complete })
    }

    pub(crate) async fn redrive(
        mut self,
        redrive: &Redrive,
        publishers: &Publishers,
    ) -> Result<u64> {
        let mut sent = 0;
        while sent < redrive.at_most()
            && let Some(message) = self.next(false).await?
        {
            let tag = message.delivery_tag;
            let (envelope, hop) = self.read(message);
            if !redrive.selected().matches(&envelope, &hop, now()) {
                continue;
            }
            if sent > 0
                && let Some(interval) = redrive.interval()
            {
                tokio::time::sleep(interval).await;
            }
            let queue = self.group.queue_for(envelope.key.as_deref(), &envelope.id);
            let target = Target::queue(&self.group, queue)?;
            // Cut off between the two, it is in both: a duplicate, never a loss.
            publishers.send(target, envelope, Hop::redrive()).await?;
            let acked = self.channel.basic_ack(tag, BasicAckOptions::default()).await;
            acked.map_err(|error| failed("redrive", "removing what was sent", error))?;
            sent += 1;
        }
        self.end().await?;
        Ok(sent)
    }

    pub(crate) async fn purge(mut self) -> Result<u64> {
        let mut removed = 0;
        while self.next(true).await?.is_some() {
            removed += 1;
        }
        self.end().await?;
        Ok(removed)
    }

    /// Takes the oldest of those that are left.
    async fn next(&mut self, no_ack: bool) -> Result<Option<message::Delivery>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        // Not to be cut off: that the queue is not there would cost the connection.
        let taken = apart(async move {
            let taken = channel.basic_get(queue, BasicGetOptions { no_ack }).await;
            taken.map_err(|error| failed("dead letters", "reading the queue", error))
        });
        let taken = taken.await?;
        // Counted here and not by a declaration, which does not see what is on its way back.
        let behind = taken.as_ref().map_or(0, |message| message.message_count);
        self.left = Some(self.left.map_or(behind, |left| left - 1));
        if taken.is_none() {
            self.left = Some(0);
        }
        Ok(taken.map(|message| message.delivery))
    }

    fn read(&self, message: message::Delivery) -> (Envelope, Hop) {
        let default_type = self.group.destination.name();
        let received = read(message, default_type);
        (received.envelope, *received.hop.unwrap_or_default())
    }

    /// Puts back what was only looked at: tag 0 means all that is open. The answer to the close
    /// tells that it is on its way, before whatever comes next.
    async fn end(&self) -> Result<()> {
        let options = BasicNackOptions { multiple: true, requeue: true };
        let put_back = self.channel.basic_nack(0, options).await;
        let closed = async { put_back.and(self.channel.close(200, "OK".into()).await) };
        closed.await.map_err(|error| failed("dead letters", "putting back what was read", error))
    }
}
