use std::borrow::Cow;
use std::num::NonZeroU16;

use crate::{Result, name};

/// Where a message is published to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// One of the competing consumers gets each message.
    Queue(Queue),
    /// Every group gets its own copy.
    Topic(Topic),
}

/// A point-to-point destination. It keeps messages that were sent before the first consumer
/// existed. Its shape is part of it: publishers and consumers must state the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    name: Cow<'static, str>,
    native: bool,
    ordered: bool,
    partitions: NonZeroU16,
}

/// A publish-subscribe destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    name: Cow<'static, str>,
    native: bool,
}

impl Queue {
    /// Names a queue: letters, digits, `.` and single `-`, at most 64 bytes with prefix and group.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), native: false, ordered: false, partitions: NonZeroU16::MIN }
    }

    /// Names an existing queue that breaks the portable rules; on this broker only.
    pub fn native(name: impl Into<Cow<'static, str>>) -> Self {
        Self { native: true, ..Self::new(name) }
    }

    /// Keeps messages of one key in order.
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Sets how many partitions share the keys of an ordered queue; 1 unless set, 0 counts as 1.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.partitions = NonZeroU16::new(partitions).unwrap_or(NonZeroU16::MIN);
        self
    }
}

impl Topic {
    /// Names a topic: letters, digits, `.` and single `-`, at most 64 bytes with prefix and group.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), native: false }
    }

    /// Names an existing topic that breaks the portable rules; on this broker only.
    pub fn native(name: impl Into<Cow<'static, str>>) -> Self {
        Self { native: true, ..Self::new(name) }
    }
}

impl Destination {
    /// Shorthand for [`Queue::new`].
    pub fn queue(name: impl Into<Cow<'static, str>>) -> Self {
        Queue::new(name).into()
    }

    /// Shorthand for [`Topic::new`].
    pub fn topic(name: impl Into<Cow<'static, str>>) -> Self {
        Topic::new(name).into()
    }

    /// The name, without the broker's prefix.
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(queue) => &queue.name,
            Self::Topic(topic) => &topic.name,
        }
    }

    /// Whether it is a topic.
    pub fn is_topic(&self) -> bool {
        matches!(self, Self::Topic(_))
    }

    /// Whether the name is used as it is, without prefix and rules.
    pub fn is_native(&self) -> bool {
        match self {
            Self::Queue(queue) => queue.native,
            Self::Topic(topic) => topic.native,
        }
    }

    /// Whether a queue keeps messages of one key in order; for topics the subscription tells.
    pub fn is_ordered(&self) -> bool {
        matches!(self, Self::Queue(queue) if queue.ordered)
    }

    /// How many partitions share the keys of an ordered queue.
    pub fn partition_count(&self) -> u16 {
        match self {
            Self::Queue(queue) => queue.partitions.get(),
            Self::Topic(_) => 1,
        }
    }

    /// Checks the name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with the rule it breaks.
    pub fn validate(&self) -> Result<()> {
        if self.is_native() {
            return Ok(());
        }
        name::check(if self.is_topic() { "topic" } else { "queue" }, self.name())
    }
}

impl From<Queue> for Destination {
    fn from(queue: Queue) -> Self {
        Self::Queue(queue)
    }
}

impl From<Topic> for Destination {
    fn from(topic: Topic) -> Self {
        Self::Topic(topic)
    }
}
