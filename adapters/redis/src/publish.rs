mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{
    Capabilities, Confirmation, Confirmer, Envelope, Hop, Outgoing, Producer, Result,
};
use redis::Cmd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::{BROKER, closed};
use crate::layout::Layout;
use crate::message::write;
use crate::scripts::DELAY;
use crate::settle::millis;
use crate::topology::Topology;

pub(crate) use writer::Writer;

/// A handle to publish with.
pub(crate) struct RedisProducer {
    pub(crate) open: Arc<AtomicBool>,
    pub(crate) capabilities: Capabilities,
    pub(crate) topology: Arc<Topology>,
    pub(crate) jobs: mpsc::UnboundedSender<Job>,
    pub(crate) room: Room,
}

/// A message on its way.
pub(crate) struct Job {
    layout: Arc<Layout>,
    envelope: Envelope,
    hop: Hop,
    /// How long the server is to keep it back.
    delay: Option<Duration>,
    deadline: Instant,
    /// Its place among all that the connection publishes, as the writer counts them.
    number: u64,
    confirmer: Option<Confirmer>,
}

impl RedisProducer {
    fn job(&self, outgoing: Outgoing) -> Result<(Job, Confirmation)> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.check(&self.capabilities)?;
        let hop = outgoing.hop();
        let Outgoing { destination, envelope, delay, .. } = outgoing;
        let layout = self.topology.layout(&destination)?;
        let (confirmer, confirmation) =
            self.room.channel(&envelope).map_err(|error| error.broker(BROKER))?;
        let job = Job {
            hop,
            // Each group of a topic parks it, those to come too. In order, it keeps its place.
            delay: delay.filter(|delay| {
                !delay.is_zero() && !destination.is_topic() && !destination.is_ordered()
            }),
            layout,
            envelope,
            deadline: Instant::now() + self.topology.settings.options.publish_timeout,
            number: 0,
            confirmer: Some(confirmer),
        };
        Ok((job, confirmation))
    }
}

impl Producer for RedisProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        match self.job(outgoing) {
            Err(error) => Confirmation::ready(Err(error)),
            Ok((job, confirmation)) => match self.jobs.send(job) {
                Ok(()) => confirmation,
                Err(_) => Confirmation::ready(Err(closed("publish"))),
            },
        }
    }
}

impl fmt::Debug for RedisProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisProducer").finish_non_exhaustive()
    }
}

impl Job {
    /// What stores it where its destination exists. A stream that `XADD` made again by itself would
    /// have no group, and nobody would know that it is ours.
    fn command(&self) -> Cmd {
        let partition = self.layout.partition(self.envelope.key.as_deref(), &self.envelope.id);
        let mut command = Cmd::with_capacity(32, 512 + self.envelope.payload.len());
        if let Some(delay) = self.delay {
            command.arg("EVAL").arg(DELAY).arg(2).arg(&self.layout.delayed[partition]);
            command
                .arg(&self.layout.streams[partition])
                .arg(millis(delay))
                .arg(fastrand::u128(..).to_string());
        } else {
            command.arg("XADD").arg(&self.layout.streams[partition]);
            command.arg("NOMKSTREAM").arg("*");
        }
        write(&self.envelope, &self.hop, self.delay.unwrap_or_default(), |name, value| {
            command.arg(name).arg(value);
        });
        command
    }

    fn answer(&mut self, result: Result<()>) {
        if let Some(confirmer) = self.confirmer.take() {
            confirmer.confirm(result);
        }
    }
}
