use anybroker_core::{Destination, Error, ErrorKind, Result, Start, Subscription};

use crate::error::error_of;

/// The longest delay tier, in powers of two of a second: 48 days, since no queue may keep its
/// messages for longer than 2^32 ms.
pub(crate) const LAST_TIER: u32 = 22;

/// What is stored for a group, by the broker's names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) destination: Destination,
    /// The group's own name.
    pub(crate) name: String,
    /// What the names of its queues derive from.
    pub(crate) stored: String,
    pub(crate) ordered: bool,
    partitions: u16,
}

impl Group {
    pub(crate) fn new(subscription: &Subscription, prefix: Option<&str>) -> Result<Self> {
        subscription.validate()?;
        let destination = subscription.destination();
        let unsupported = |text: &'static str| Err(error_of(ErrorKind::Unsupported, "subscribe", text));
        if destination.is_topic() && subscription.partition_count() > 1 {
            return unsupported("a group of a topic has one partition on RabbitMQ: drop .partitions(..), or use an ordered queue");
        }
        if destination.is_topic() && subscription.start_position() == Start::Earliest {
            return unsupported("a topic on RabbitMQ keeps nothing for groups to come: drop .start(..)");
        }
        let group = Self {
            stored: prefixed(destination, prefix, &subscription.stored_name()),
            name: subscription.group_name().to_owned(),
            ordered: subscription.is_ordered(),
            partitions: subscription.partition_count(),
            destination: destination.clone(),
        };
        group.validate()?;
        Ok(group)
    }

    /// The one group of a queue.
    pub(crate) fn of_queue(queue: &Destination, prefix: Option<&str>) -> Result<Self> {
        queue.validate()?;
        let group = Self {
            stored: prefixed(queue, prefix, queue.name()),
            name: queue.name().to_owned(),
            ordered: queue.is_ordered(),
            partitions: queue.partition_count(),
            destination: queue.clone(),
        };
        group.validate()?;
        Ok(group)
    }

    fn validate(&self) -> Result<()> {
        // Half of what AMQP takes, so that each derived name fits.
        let limit = if self.destination.is_native() { 200 } else { 64 + "--".len() };
        if self.stored.len() <= limit {
            return Ok(());
        }
        let text = format!(
            "{:?} takes {} bytes: prefix, destination and group together may take {limit}",
            self.stored,
            self.stored.len()
        );
        Err(invalid(text))
    }

    /// The queues that its messages are in; several when an ordered queue has partitions.
    pub(crate) fn queues(&self) -> Vec<String> {
        match self.partitions {
            1 => vec![self.stored.clone()],
            count => (0..count).map(|index| self.partition(index)).collect(),
        }
    }

    /// The queue for messages of this key; those without one are spread by their id.
    pub(crate) fn queue_for(&self, key: Option<&str>, id: &str) -> String {
        match self.partitions {
            1 => self.stored.clone(),
            count => {
                let hash = stable_hash(key.unwrap_or(id)) % u64::from(count);
                self.partition(u16::try_from(hash).unwrap_or_default())
            }
        }
    }

    fn partition(&self, index: u16) -> String {
        format!("{}--p{index}", self.stored)
    }

    pub(crate) fn dead_letters(&self) -> String {
        format!("{}--dlq", self.stored)
    }
}

pub(crate) fn prefixed(destination: &Destination, prefix: Option<&str>, name: &str) -> String {
    match prefix {
        Some(prefix) if !destination.is_native() => format!("{prefix}.{name}"),
        _ => name.to_owned(),
    }
}

/// The queue that gives messages to `target` after 2^`power` seconds.
pub(crate) fn tier(target: &str, power: u32) -> String {
    format!("{target}--delay-{}s", 1_u64 << power)
}

/// FNV-1a: publishers and consumers of all versions must agree on it.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
        assert_eq!(group.queues(), ["dev.order.created--email"]);
        assert_eq!(group.dead_letters(), "dev.order.created--email--dlq");
        assert_eq!(tier(&group.stored, 2), "dev.order.created--email--delay-4s");

        let queue = Queue::new("payments").ordered().partitions(2);
        let group = Group::new(&Subscription::queue(queue), None)?;
        assert_eq!(group.queues(), ["payments--p0", "payments--p1"]);
        assert_eq!(group.queue_for(Some("7"), "a"), group.queue_for(Some("7"), "b"));

        let native = Subscription::queue(Queue::native("Old_Queue"));
        assert_eq!(Group::new(&native, Some("dev"))?.queues(), ["Old_Queue"]);
        Ok(())
    }

    #[test]
    fn keys_keep_their_partition_for_ever() {
        assert_eq!(stable_hash("customer-7") % 8, stable_hash("customer-7") % 8);
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
