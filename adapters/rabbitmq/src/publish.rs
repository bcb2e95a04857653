use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anybroker_core::adapter::{Room, stable_hash};
use anybroker_core::{Confirmation, Confirmer, Envelope, Hop, Result};
use lapin::types::ShortString;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::error::{BROKER, closed};
use crate::group::Group;
use crate::lane::Lane;
use crate::link::Link;
use crate::topology::{Helper, Needs, Place, Topology, short};

/// Lanes for each connection. Each has one channel and one lot on its way: as many messages in
/// flight on one channel are slower, since the client searches all of them at each confirm.
const LANES: usize = 4;

/// Sends messages, each over the lane of its key, and answers what became of each.
pub(crate) struct Publishers {
    lanes: Vec<mpsc::UnboundedSender<Box<Job>>>,
    next: AtomicUsize,
    room: Room,
    pub(crate) topology: Arc<Topology>,
}

/// A message on its way.
pub(crate) struct Job {
    pub(crate) target: Target,
    pub(crate) envelope: Envelope,
    pub(crate) hop: Hop,
    pub(crate) deadline: Instant,
    /// Until it is answered.
    pub(crate) confirmer: Option<Confirmer>,
    /// Whether the broker refused it before.
    pub(crate) refused: bool,
}

/// Where a message goes.
pub(crate) struct Target {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// Whether it is an error when no queue gets it.
    pub(crate) mandatory: bool,
    pub(crate) needs: Needs,
}

impl Publishers {
    /// Starts the lanes; they end, with all sent, when `draining` changes.
    pub(crate) fn start(
        topology: &Arc<Topology>,
        links: &[Link],
        draining: &watch::Receiver<bool>,
    ) -> Self {
        let lanes = links.iter().cycle().take(links.len() * LANES).map(|link| {
            let (sender, jobs) = mpsc::unbounded_channel();
            let lane = Lane::new(link.clone(), Arc::clone(topology));
            tokio::spawn(lane.run(jobs, draining.clone()));
            sender
        });
        Self {
            lanes: lanes.collect(),
            next: AtomicUsize::new(0),
            room: Room::default(),
            topology: Arc::clone(topology),
        }
    }

    /// Sends; calls with one key are stored in their order.
    pub(crate) fn send(&self, target: Target, envelope: Envelope, hop: Hop) -> Confirmation {
        let (confirmer, confirmation) = match self.room.channel(&envelope) {
            Ok(both) => both,
            Err(error) => return Confirmation::ready(Err(error.broker(BROKER))),
        };
        let lane = match &envelope.key {
            Some(key) => usize::try_from(stable_hash(key) >> 33).unwrap_or_default(),
            None => self.next.fetch_add(1, Ordering::Relaxed),
        };
        let job = Box::new(Job {
            target,
            envelope,
            hop,
            deadline: Instant::now() + self.topology.settings.options.publish_timeout,
            confirmer: Some(confirmer),
            refused: false,
        });
        match self.lanes[lane % self.lanes.len()].send(job) {
            Ok(()) => confirmation,
            Err(_) => Confirmation::ready(Err(closed("publish"))),
        }
    }
}

impl Job {
    pub(crate) fn answer(&mut self, result: Result<()>) {
        if let Some(confirmer) = self.confirmer.take() {
            confirmer.confirm(result);
        }
    }
}

impl Target {
    /// One of a group's queues.
    pub(crate) fn queue(group: &Arc<Group>, name: &str) -> Result<Self> {
        Ok(Self {
            exchange: "".into(),
            routing_key: short(name)?,
            mandatory: true,
            needs: Needs { place: Place::Group(Arc::clone(group)), helper: None },
        })
    }

    /// A queue beside one of a group's own.
    pub(crate) fn helper(group: &Arc<Group>, helper: Helper) -> Result<Self> {
        let mut target = Self::queue(group, &helper.name())?;
        target.needs.helper = Some(helper);
        Ok(target)
    }
}
