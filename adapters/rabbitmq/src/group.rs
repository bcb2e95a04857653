use std::sync::atomic::AtomicU64;

use anybroker_core::adapter::{SharedTask, partition, prefixed};
use anybroker_core::{Destination, Error, ErrorKind, Result, Subscription};

use crate::error::error_of;

/// The longest delay tier, in powers of two of a second: 48 days, since no queue may keep its
/// messages for longer than 2^32 ms.
pub(crate) const LAST_TIER: u32 = 22;

/// What is stored for a group, by the broker's names.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) destination: Destination,
    /// The group's own name.
    pub(crate) name: String,
    /// What the names of its queues derive from.
    pub(crate) stored: String,
    pub(crate) ordered: bool,
    /// Where its messages are: in several queues when an ordered queue has partitions. A group of
    /// a topic has one, since only the publisher could tell its messages apart.
    pub(crate) queues: Vec<String>,
    pub(crate) declared: Declared,
}

/// Whether something was declared, and the declaration that is under way.
#[derive(Debug)]
pub(crate) struct Declared {
    /// In which epoch it was declared last.
    pub(crate) epoch: AtomicU64,
    pub(crate) under_way: SharedTask<()>,
}

/// Never an epoch.
const UNDECLARED: u64 = u64::MAX;

impl Default for Declared {
    fn default() -> Self {
        Self { epoch: AtomicU64::new(UNDECLARED), under_way: SharedTask::default() }
    }
}

impl Group {
    /// # Errors
    /// `Invalid` for a name.
    pub(crate) fn new(subscription: &Subscription, prefix: Option<&str>) -> Result<Self> {
        subscription.validate()?;
        let destination = subscription.destination();
        let stored = prefixed(prefix, ".", destination, &subscription.stored_name())?;
        let name = subscription.group_name().to_owned();
        Self::make(destination, name, stored, subscription.is_ordered())
    }

    /// The one group of a queue.
    pub(crate) fn of_queue(queue: &Destination, prefix: Option<&str>) -> Result<Self> {
        queue.validate()?;
        let stored = prefixed(prefix, ".", queue, queue.name())?;
        Self::make(queue, queue.name().to_owned(), stored, queue.is_ordered())
    }

    fn make(
        destination: &Destination,
        name: String,
        stored: String,
        ordered: bool,
    ) -> Result<Self> {
        // AMQP takes 255, of which derived names need some.
        if stored.len() > 200 {
            let text = format!("{stored:?} takes {} bytes of 200", stored.len());
            return Err(invalid(text));
        }
        let queues = match destination.partition_count() {
            _ if destination.is_topic() => vec![stored.clone()],
            1 => vec![stored.clone()],
            count => (0..count).map(|index| format!("{stored}--p{index}")).collect(),
        };
        let declared = Declared::default();
        Ok(Self { destination: destination.clone(), name, stored, ordered, queues, declared })
    }

    /// The queue for messages of this key; those without one are spread by their id.
    pub(crate) fn queue_for(&self, key: Option<&str>, id: &str) -> &str {
        &self.queues[partition(self.queues.len(), key, id)]
    }

    pub(crate) fn dead_letters(&self) -> String {
        format!("{}--dlq", self.stored)
    }
}

/// The queue that gives messages to `target` after 2^`power` seconds.
pub(crate) fn tier(target: &str, power: u32) -> String {
    format!("{target}--delay-{}s", 1_u64 << power)
}

/// The queue that keeps how often messages of an ordered queue were handed out; see
/// [`Runs`](crate::runs::Runs).
pub(crate) fn runs(queue: &str) -> String {
    format!("{queue}--runs")
}

pub(crate) fn invalid(text: String) -> Error {
    error_of(ErrorKind::Invalid, "name", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anybroker_core::Queue;

    #[test]
    fn names_derive_from_prefix_destination_and_group() -> Result<()> {
        let topic = Subscription::topic("order.created").group("email");
        let group = Group::new(&topic, Some("dev"))?;
        assert_eq!(group.queues, ["dev.order.created--email"]);
        assert_eq!(group.dead_letters(), "dev.order.created--email--dlq");
        assert_eq!(tier(&group.stored, 2), "dev.order.created--email--delay-4s");

        let queue = Queue::new("payments").ordered().partitions(2);
        let group = Group::new(&Subscription::queue(queue), None)?;
        assert_eq!(group.queues, ["payments--p0", "payments--p1"]);
        assert_eq!(group.queue_for(Some("7"), "a"), group.queue_for(Some("7"), "b"));

        let native = Subscription::queue(Queue::native("Old_Queue"));
        assert_eq!(Group::new(&native, Some("dev"))?.queues, ["Old_Queue"]);
        Ok(())
    }
}
