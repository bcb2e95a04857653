//! Which keys a destination has. All of them share a hash slot, so that scripts can move messages
//! between them on a cluster too.

use std::sync::atomic::AtomicBool;

use anybroker_core::adapter::{SharedTask, partition, prefixed};
use anybroker_core::{Destination, Result, Subscription};

/// Joins the parts of a name; no portable name contains it, so that no two names meet.
const SEPARATOR: &str = "--";

/// What is stored for a destination.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) destination: Destination,
    /// Its own name, with the prefix.
    pub(crate) name: String,
    /// Where its messages are, by the hash of their key.
    pub(crate) streams: Vec<String>,
    /// Where a queue's messages wait for their time.
    pub(crate) delayed: Vec<String>,
    /// Whether it was declared, so that it can be published to.
    pub(crate) declared: AtomicBool,
    /// In a task of its own, so that no message's deadline cuts it off for the others.
    pub(crate) declaring: SharedTask<()>,
}

/// What is stored for a group of a destination.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) layout: Layout,
    pub(crate) name: String,
    pub(crate) ordered: bool,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) dead_letters: String,
    /// Which processes share the partitions of an ordered group.
    pub(crate) members: String,
}

/// The keys of a group for one stream of its destination.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) stream: String,
    /// What came back to this group alone.
    pub(crate) retry: String,
    /// What waits for its time.
    pub(crate) delayed: String,
    /// Who handles an ordered partition.
    pub(crate) lock: String,
}

impl Layout {
    /// # Errors
    /// `Invalid` for a name.
    pub(crate) fn new(destination: &Destination, prefix: Option<&str>) -> Result<Self> {
        destination.validate()?;
        let name = prefixed(prefix, SEPARATOR, destination, destination.name())?;
        let mut layout = Self {
            destination: destination.clone(),
            streams: vec![name.clone()],
            delayed: Vec::new(),
            name,
            declared: AtomicBool::new(false),
            declaring: SharedTask::default(),
        };
        if destination.partition_count() > 1 {
            let partitions = 0..destination.partition_count();
            layout.streams = partitions.map(|index| layout.derived(&format!("p{index}"))).collect();
        }
        let delayed = |index| layout.of_group(destination.name(), "delayed", index);
        layout.delayed = (0..layout.streams.len()).map(delayed).collect();
        Ok(layout)
    }

    /// What says how the destination was declared.
    pub(crate) fn meta(&self) -> String {
        self.derived("meta")
    }

    /// The stream of a message; those without a key are spread by their id.
    pub(crate) fn partition(&self, key: Option<&str>, id: &str) -> usize {
        partition(self.streams.len(), key, id)
    }

    /// A key of a group, for one stream.
    fn of_group(&self, group: &str, what: &str, index: usize) -> String {
        match self.streams.len() {
            1 => self.derived(&format!("{group}--{what}")),
            _ => self.derived(&format!("{group}--{what}--p{index}")),
        }
    }

    /// A key in the slot of the destination's own name.
    fn derived(&self, suffix: &str) -> String {
        // A native name may have chosen its slot itself.
        let tagged = self
            .name
            .split_once('{')
            .is_some_and(|(_, rest)| rest.split_once('}').is_some_and(|(tag, _)| !tag.is_empty()));
        if tagged {
            [&self.name, suffix].join(SEPARATOR)
        } else {
            [&format!("{{{}}}", self.name), suffix].join(SEPARATOR)
        }
    }
}

impl Group {
    /// # Errors
    /// `Invalid` for a name or a combination.
    pub(crate) fn new(subscription: &Subscription, prefix: Option<&str>) -> Result<Self> {
        subscription.validate()?;
        let layout = Layout::new(subscription.destination(), prefix)?;
        let name = subscription.group_name().to_owned();
        let ordered = subscription.is_ordered();
        // Its keys derive from it in another way; it must fit all the same.
        prefixed(prefix, SEPARATOR, &layout.destination, &subscription.stored_name())?;
        Ok(Self::of(layout, name, ordered))
    }

    /// The one group of a queue.
    pub(crate) fn of_queue(layout: Layout) -> Self {
        let (name, ordered) =
            (layout.destination.name().to_owned(), layout.destination.is_ordered());
        Self::of(layout, name, ordered)
    }

    fn of(layout: Layout, name: String, ordered: bool) -> Self {
        let key = |what, index| layout.of_group(&name, what, index);
        let partitions = layout.streams.iter().enumerate().map(|(index, stream)| Partition {
            stream: stream.clone(),
            retry: key("retry", index),
            delayed: key("delayed", index),
            lock: key("lock", index),
        });
        Self {
            partitions: partitions.collect(),
            dead_letters: layout.derived(&format!("{name}--dlq")),
            members: layout.derived(&format!("{name}--members")),
            layout,
            name,
            ordered,
        }
    }

    /// The stream that a source stands for; see [`Source`](crate::held::Source).
    pub(crate) fn stream(&self, source: usize) -> &str {
        let partition = &self.partitions[source / 2];
        if source.is_multiple_of(2) { &partition.stream } else { &partition.retry }
    }
}

#[cfg(test)]
mod tests {
    use anybroker_core::{Queue, Topic};

    use super::*;

    #[test]
    fn keys_derive_from_prefix_destination_and_group() -> Result<()> {
        let topic = Subscription::topic("order.created").group("email");
        let group = Group::new(&topic, Some("dev"))?;
        assert_eq!(group.partitions[0].stream, "dev--order.created");
        assert_eq!(group.partitions[0].retry, "{dev--order.created}--email--retry");
        assert_eq!(group.dead_letters, "{dev--order.created}--email--dlq");
        assert_eq!(group.layout.meta(), "{dev--order.created}--meta");

        let queue = Queue::new("payments").ordered().partitions(2);
        let group = Group::new(&Subscription::queue(queue), None)?;
        let streams: Vec<_> = group.partitions.iter().map(|p| &*p.stream).collect();
        assert_eq!(streams, ["{payments}--p0", "{payments}--p1"]);
        assert_eq!(group.layout.partition(Some("7"), "a"), group.layout.partition(Some("7"), "b"));
        assert_eq!(group.stream(3), "{payments}--payments--retry--p1");

        let native = Subscription::topic(Topic::native("Old{7}_x")).group("g");
        assert_eq!(Group::new(&native, Some("dev"))?.dead_letters, "Old{7}_x--g--dlq");
        Ok(())
    }

    #[test]
    fn names_that_would_meet_when_joined_do_not() -> Result<()> {
        let key = |prefix, topic: &'static str, group: &'static str| {
            Group::new(&Subscription::topic(topic).group(group), prefix).map(|g| g.dead_letters)
        };
        let keys = [
            key(None, "a.b", "c")?,
            key(None, "a", "b.c")?,
            key(Some("a"), "b", "c")?,
            key(None, "a-b", "c")?,
            key(None, "a", "b-c")?,
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{keys:?}");
        }
        Ok(())
    }
}
