//! What flows while things go wrong: where messages go, what they ask of their handlers, and which
//! timeouts the faults have to exceed.

use std::time::Duration;

use anybroker::{BoxError, Reason};
use anybroker::{Destination, Outcome, Queue, Subscription, Topic, permanent};
use anybroker_testkit::history::{Checker, Fate};
use clap::ValueEnum;
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// How long a publish may take.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a delivery is hidden, where deliveries are leased.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// After how long a killed member leaves its group, where there are sessions: the least there is.
pub(crate) const SESSION: Duration = Duration::from_secs(6);
/// How long a worker that drains lets its handlers finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(8);
/// How long after a fault was healed its consequences may show: the longest of the timeouts, and
/// then a reconnect with its backoff.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(12);
/// How many attempts a message has.
pub(crate) const ATTEMPTS: u32 = 4;
/// Between them.
pub(crate) const BACKOFF: Duration = Duration::from_millis(400);

const SOON: Duration = Duration::from_millis(500);
/// Longer than a worker keeps a retry in its process (5 s), so that the broker stores it.
const LATER: Duration = Duration::from_millis(6_500);
const PARTITIONS: u16 = 3;

/// A part of the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Part {
    /// A queue whose messages have no order
    Queue,
    /// An ordered queue of three partitions
    Ordered,
    /// A topic with two groups
    Topic,
}

impl Part {
    pub(crate) fn destination(self) -> Destination {
        match self {
            Self::Queue => Queue::new("jobs").into(),
            Self::Ordered => Queue::new("steps").ordered().partitions(PARTITIONS).into(),
            Self::Topic => Topic::new("news").into(),
        }
    }

    pub(crate) fn subscriptions(self) -> Vec<Subscription> {
        let subscriptions = match self.destination() {
            Destination::Queue(queue) => vec![Subscription::queue(queue)],
            Destination::Topic(topic) => ["mail", "audit"]
                .map(|group| Subscription::topic(topic.clone()).group(group))
                .into(),
        };
        subscriptions.into_iter().map(|subscription| subscription.lease(LEASE)).collect()
    }

    /// Of its name in a history.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::value_variants().iter().find(|part| part.destination().name() == name).copied()
    }
}

/// A checker that knows the groups of these parts.
pub(crate) fn checker(parts: &[Part]) -> Checker {
    let subscriptions = parts.iter().flat_map(|part| part.subscriptions());
    subscriptions.fold(Checker::new(AFTERMATH), |checker, subscription| {
        let destination = subscription.destination().name();
        checker.group(subscription.group_name(), destination, subscription.is_ordered())
    })
}

/// What a message asks of its handler. It is the first word of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// Is handled within milliseconds.
    Quick,
    /// Is handled for longer than its lease.
    Slow,
    /// Fails once, and waits in its process.
    Soon,
    /// Fails once, and waits in the broker.
    Later,
    /// Fails twice with an error.
    Twice,
    /// Fails for good.
    Hopeless,
    /// Fails as often as it may.
    Exhausting,
}

impl Task {
    /// What is drawn for a message of this part, with the delay of its publish.
    pub(crate) fn draw(part: Part, rng: &mut Rng) -> (Self, Duration) {
        let task = match rng.u32(..1000) {
            0..3 => Self::Slow,
            3..40 => Self::Soon,
            // It holds up its key, which others wait for.
            40..50 => Self::Later,
            50..80 if part != Part::Ordered => Self::Later,
            80..100 => Self::Twice,
            100..110 => Self::Hopeless,
            110..120 => Self::Exhausting,
            _ => Self::Quick,
        };
        // A delayed message has no place in an order.
        let millis = match rng.u32(..100) {
            0..3 if part != Part::Ordered => rng.u64(500..4_000),
            3..6 if part != Part::Ordered => rng.u64(5_500..9_000),
            _ => 0,
        };
        (task, Duration::from_millis(millis))
    }

    pub(crate) fn of_id(id: &str) -> Option<Self> {
        Self::from_str(id.split_once('-')?.0, false).ok()
    }

    pub(crate) fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// How its message has to end.
    pub(crate) fn fate(self) -> Fate {
        let (reason, runs) = match self {
            Self::Hopeless => (Reason::PERMANENT, 1),
            Self::Exhausting => (Reason::EXHAUSTED, ATTEMPTS),
            _ => return Fate::Handled,
        };
        Fate::DeadLettered { reason: reason.to_owned(), runs }
    }

    pub(crate) async fn perform(self, attempt: u32) -> Result<Outcome, BoxError> {
        sleep(Duration::from_micros(fastrand::u64(..8_000))).await;
        match self {
            Self::Slow => sleep(LEASE + Duration::from_secs(1)).await,
            Self::Soon if attempt == 1 => return Ok(Outcome::Retry { after: SOON }),
            Self::Later if attempt == 1 => return Ok(Outcome::Retry { after: LATER }),
            Self::Twice if attempt <= 2 => return Err("not yet".into()),
            Self::Hopeless => return Err(permanent("never")),
            Self::Exhausting => return Err("not at all".into()),
            Self::Quick | Self::Soon | Self::Later | Self::Twice => {}
        }
        Ok(Outcome::Ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_its_message_asks_for() {
        for task in Task::value_variants() {
            assert_eq!(Task::of_id(&format!("{}-publisher-1.0-7", task.word())), Some(*task));
        }
        assert_eq!(Task::of_id("stranger-1"), None);
    }

    #[test]
    fn a_destination_says_which_part_it_is() {
        for part in Part::value_variants() {
            assert_eq!(Part::named(part.destination().name()), Some(*part));
        }
    }
}
