use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anybroker_core::adapter::{Room, stable_hash};
use anybroker_core::{Confirmation, Confirmer, Envelope, Hop, Result, now};
use lapin::types::ShortString;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::error::{BROKER, closed};
use crate::group::Group;
use crate::lane::Lane;
use crate::link::Link;
use crate::settle::power;
use crate::topology::{Helper, Needs, Place, Topology, short};

/// Lanes for each connection. Each has one channel and one lot on its way: as many messages in
/// flight on one channel are slower, since the client searches all of them at each confirm.
const LANES: usize = 4;

/// By how much a delay queue may be too long.
const LATE: Duration = Duration::from_millis(500);

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
            let lane = Lane::new(link.clone(), Arc::clone(topology), draining.clone());
            tokio::spawn(lane.run(jobs));
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

    /// Turns to a shorter delay queue, or to none, where so much time has passed that the message
    /// would be late. Returns whether it has: that queue may have to be declared as well.
    pub(crate) fn catch_up(&mut self) -> Result<bool> {
        let Needs {
            place: Place::Group(group),
            helper: Some(Helper::Tier { target, power: tier }),
        } = &self.target.needs
        else {
            return Ok(false);
        };
        let Some(due) = self.hop.not_before else { return Ok(false) };
        let left = due.duration_since(now()).unwrap_or_default();
        if Duration::from_secs(1 << tier) <= left + LATE {
            return Ok(false);
        }
        self.target = match power(left) {
            Some(power) => Target::helper(group, Helper::Tier { target: target.clone(), power })?,
            None => Target::queue(group, target)?,
        };
        Ok(true)
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

#[cfg(test)]
mod tests {
    use anybroker_core::Queue;

    use super::*;

    /// The queue for a message that was to wait in a tier of 16 s, with so much time left.
    fn queue_with(left: Duration) -> Result<String> {
        let group = Arc::new(Group::of_queue(&Queue::new("jobs").into(), None)?);
        let helper = Helper::Tier { target: "jobs".to_owned(), power: 4 };
        let mut job = Job {
            target: Target::helper(&group, helper)?,
            envelope: Envelope::new("t", "x"),
            hop: Hop { not_before: Some(now() + left), ..Hop::default() },
            deadline: Instant::now(),
            confirmer: None,
            refused: false,
        };
        job.catch_up()?;
        Ok(job.target.routing_key.to_string())
    }

    #[test]
    fn what_its_delay_queue_would_bring_late_takes_a_shorter_one() -> Result<()> {
        assert_eq!(queue_with(Duration::from_secs(20))?, "jobs--delay-16s");
        assert_eq!(queue_with(Duration::from_secs(15))?, "jobs--delay-8s");
        assert_eq!(queue_with(Duration::from_millis(900))?, "jobs");
        Ok(())
    }
}
