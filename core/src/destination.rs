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
pub struct Queue(Stored);

/// A publish-subscribe destination. Its shape is part of it: publishers and consumers must state
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic(Stored);

/// What a broker is asked to store under a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stored {
    name: Cow<'static, str>,
    native: bool,
    ordered: bool,
    partitions: Option<NonZeroU16>,
}

impl Stored {
    fn new(name: Cow<'static, str>) -> Self {
        Self { name, native: false, ordered: false, partitions: None }
    }
}

impl Queue {
    /// Names a queue: letters, digits, `.` and single `-`, at most 64 bytes with prefix and group.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Stored::new(name.into()))
    }

    /// Names an existing queue that breaks the portable rules; on this broker only.
    pub fn native(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Stored { native: true, ..Stored::new(name.into()) })
    }

    /// Keeps messages of one key in order.
    pub fn ordered(mut self) -> Self {
        self.0.ordered = true;
        self
    }

    /// States how many partitions share the keys. Unstated, an ordered queue has 1, and brokers
    /// that partition everything decide it; 0 leaves it unstated.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.0.partitions = NonZeroU16::new(partitions);
        self
    }
}

impl Topic {
    /// Names a topic: letters, digits, `.` and single `-`, at most 64 bytes with prefix and group.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Stored::new(name.into()))
    }

    /// Names an existing topic that breaks the portable rules; on this broker only.
    pub fn native(name: impl Into<Cow<'static, str>>) -> Self {
        Self(Stored { native: true, ..Stored::new(name.into()) })
    }

    /// Keeps messages of one key in order, in every group.
    pub fn ordered(mut self) -> Self {
        self.0.ordered = true;
        self
    }

    /// States how many partitions share the keys. Unstated, an ordered topic has 1, and brokers
    /// that partition everything decide it; 0 leaves it unstated.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.0.partitions = NonZeroU16::new(partitions);
        self
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

    fn stored(&self) -> &Stored {
        match self {
            Self::Queue(Queue(stored)) | Self::Topic(Topic(stored)) => stored,
        }
    }

    /// The name, without the broker's prefix.
    pub fn name(&self) -> &str {
        &self.stored().name
    }

    /// Whether it is a topic.
    pub fn is_topic(&self) -> bool {
        matches!(self, Self::Topic(_))
    }

    /// Whether the name is used as it is, without prefix and rules.
    pub fn is_native(&self) -> bool {
        self.stored().native
    }

    /// Whether messages of one key are kept in order.
    pub fn is_ordered(&self) -> bool {
        self.stored().ordered
    }

    /// How many partitions share the keys; 1 unless stated.
    pub fn partition_count(&self) -> u16 {
        self.stated_partitions().unwrap_or(1)
    }

    /// How many partitions were stated, for brokers that partition everything.
    pub fn stated_partitions(&self) -> Option<u16> {
        self.stored().partitions.map(NonZeroU16::get)
    }

    /// Its shape in words (`ordered queue with partitions: 4`).
    pub fn shape(&self) -> String {
        let ordered = if self.is_ordered() { "ordered" } else { "unordered" };
        let kind = if self.is_topic() { "topic" } else { "queue" };
        format!("{ordered} {kind} with partitions: {}", self.partition_count())
    }

    /// Checks the name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with the rule it breaks.
    pub fn validate(&self) -> Result<()> {
        let what = if self.is_topic() { "topic" } else { "queue" };
        if self.is_native() {
            name::check_native(what, self.name())
        } else {
            name::check(what, self.name())
        }
    }
}

impl From<&str> for Queue {
    fn from(name: &str) -> Self {
        Self::new(name.to_owned())
    }
}

impl From<&String> for Queue {
    fn from(name: &String) -> Self {
        Self::new(name.clone())
    }
}

impl From<String> for Queue {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&str> for Topic {
    fn from(name: &str) -> Self {
        Self::new(name.to_owned())
    }
}

impl From<&String> for Topic {
    fn from(name: &String) -> Self {
        Self::new(name.clone())
    }
}

impl From<String> for Topic {
    fn from(name: String) -> Self {
        Self::new(name)
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
