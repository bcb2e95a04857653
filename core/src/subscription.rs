use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Destination, Error, ErrorKind, Queue, Result, Topic, name};

/// What a worker consumes: a queue, or a topic as a member of a group; and how.
///
/// ```
/// # use anybroker_core::{Queue, Subscription};
/// Subscription::topic("order.created").group("email").validate()?;
/// Subscription::queue("order.place").validate()?;
/// Subscription::queue(Queue::new("payments").ordered()).max_deliveries(5).validate()?;
/// assert!(Subscription::topic("order.created").validate().is_err(), "a topic needs a group");
/// # Ok::<(), anybroker_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Subscription {
    destination: Destination,
    group: Option<Cow<'static, str>>,
    ordered: bool,
    start: Start,
    expired: Expired,
    lease: Duration,
    max_delay: Duration,
    max_deliveries: Limit,
}

/// After how many deliveries a message is given up.
#[derive(Clone, Debug)]
enum Limit {
    /// Nobody said so: 20, or as many attempts as a retry layer of the handler makes. A layer is
    /// hidden beneath others, so that it can say how many only when it sees its first message; all
    /// clones of the subscription know from then on.
    Unstated(Arc<AtomicU32>),
    Stated(u32),
    None,
}

const MAX_DELIVERIES: u32 = 20;

/// A year, and a leap year too.
const MAX_DELAY: Duration = Duration::from_hours(24 * 366);

/// Where a new group of a topic begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the first message published after the group was created.
    #[default]
    New,
    /// With the oldest message that the topic still keeps; a capability.
    Earliest,
}

/// What becomes of a message whose `expires` is in the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// It goes to the dead-letter queue with the reason `expired`.
    #[default]
    DeadLetter,
    /// It is acknowledged, and counted in the worker's report.
    Discard,
}

impl Subscription {
    /// Consumes a queue; its group has the queue's name.
    pub fn queue(queue: impl Into<Queue>) -> Self {
        Self::new(Destination::Queue(queue.into()))
    }

    /// Consumes a topic; name its [`group`](Self::group) too.
    pub fn topic(topic: impl Into<Topic>) -> Self {
        Self::new(Destination::Topic(topic.into()))
    }

    fn new(destination: Destination) -> Self {
        Self {
            ordered: destination.is_ordered(),
            destination,
            group: None,
            start: Start::New,
            expired: Expired::DeadLetter,
            lease: Duration::from_secs(30),
            max_delay: MAX_DELAY,
            max_deliveries: Limit::Unstated(Arc::new(AtomicU32::new(MAX_DELIVERIES))),
        }
    }

    /// Names the group that shares the topic's deliveries.
    pub fn group(mut self, group: impl Into<Cow<'static, str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Handles messages of one key in order in this group of a topic that is not ordered itself,
    /// where the broker can. An ordered queue or topic says it for all its groups.
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Sets where a new group of a topic begins; [`Start::New`] unless set.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets what becomes of expired messages; [`Expired::DeadLetter`] unless set.
    pub fn expired(mut self, expired: Expired) -> Self {
        self.expired = expired;
        self
    }

    /// Sets how long a delivery is hidden from other consumers before it must be renewed, on
    /// brokers that lease; 30 s unless set, at least 1 s. The worker renews it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_secs(1));
        self
    }

    /// Sets how far ahead the time may lie before which no handler may see a message; a year (366
    /// days) unless set. What comes to the worker with a later time goes to the dead-letter queue
    /// with the reason `too-far-ahead`: any producer can write such a time, and to wait for it would
    /// hold back what follows in order. A redrive hands the message out at once.
    pub fn max_delay(mut self, max_delay: Duration) -> Self {
        self.max_delay = max_delay;
        self
    }

    /// Sets after how many deliveries without an outcome a message goes to the dead-letter queue,
    /// before a handler sees it again: it stops messages that kill the process. 20 unless set, or
    /// as many as the handler's [`RetryLayer`](crate::RetryLayer) has attempts, if those are more.
    ///
    /// A set limit ends failed attempts too, with the reason `exhausted` where a layer or the
    /// worker sees the error.
    pub fn max_deliveries(mut self, max_deliveries: u32) -> Self {
        self.max_deliveries = Limit::Stated(max_deliveries.max(1));
        self
    }

    /// Delivers a message that kills the process again and again, for ever.
    pub fn unlimited_deliveries(mut self) -> Self {
        self.max_deliveries = Limit::None;
        self
    }

    /// What is consumed.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The group; a queue's is the queue's name.
    pub fn group_name(&self) -> &str {
        self.group.as_deref().unwrap_or_else(|| self.destination.name())
    }

    /// Whether messages of one key are handled in order.
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Where a new group begins.
    pub fn start_position(&self) -> Start {
        self.start
    }

    /// What becomes of expired messages.
    pub fn expired_policy(&self) -> Expired {
        self.expired
    }

    /// How long a delivery is hidden before it must be renewed.
    pub fn lease_time(&self) -> Duration {
        self.lease
    }

    /// How far ahead the time of a message may lie.
    pub fn delay_limit(&self) -> Duration {
        self.max_delay
    }

    /// After how many deliveries a message is given up unseen.
    pub fn delivery_limit(&self) -> Option<u32> {
        match &self.max_deliveries {
            Limit::Unstated(limit) => Some(limit.load(Ordering::Relaxed)),
            Limit::Stated(limit) => Some(*limit),
            Limit::None => None,
        }
    }

    /// Which attempt of a retry layer is the last, if the layer has so many. A limit that nobody
    /// stated follows the layer's.
    pub(crate) fn last_attempt(&self, max_attempts: u32) -> u32 {
        match &self.max_deliveries {
            Limit::Unstated(limit) => {
                if limit.load(Ordering::Relaxed) < max_attempts {
                    limit.fetch_max(max_attempts, Ordering::Relaxed);
                }
                max_attempts
            }
            Limit::Stated(limit) => max_attempts.min(*limit),
            Limit::None => max_attempts,
        }
    }

    /// The name of what the broker stores for the group, without prefix: the queue's name, or
    /// `topic--group`.
    pub fn stored_name(&self) -> String {
        match &self.destination {
            Destination::Queue(_) => self.destination.name().to_owned(),
            Destination::Topic(_) => {
                [self.destination.name(), self.group_name()].join(name::SEPARATOR)
            }
        }
    }

    /// The name of something derived from the group's own (`order.created--email--dlq`).
    pub fn derived_name(&self, suffix: &str) -> String {
        [&self.stored_name(), suffix].join(name::SEPARATOR)
    }

    /// Checks names and combinations.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what to write instead.
    pub fn validate(&self) -> Result<()> {
        self.destination.validate()?;
        match (&self.destination, &self.group) {
            (Destination::Topic(_), None) => Err(invalid(format!(
                "a subscription of topic {:?} needs a group: write .group(\"name\")",
                self.destination.name()
            ))),
            (Destination::Queue(_), Some(group)) => Err(invalid(format!(
                "queue {:?} has no groups besides its own: drop .group({group:?}) or use a topic",
                self.destination.name()
            ))),
            (Destination::Queue(_), None) if self.ordered != self.destination.is_ordered() => {
                Err(invalid("write .ordered() on the queue, not on its subscription".to_owned()))
            }
            (Destination::Queue(_), None) => Ok(()),
            (Destination::Topic(_), Some(group)) => {
                name::check("group", group)?;
                let total = self.destination.name().len() + group.len();
                if !self.destination.is_native() && total > name::LONGEST {
                    return Err(invalid(format!(
                        "topic {:?} and group {group:?} together take {total} bytes; at most {} are portable",
                        self.destination.name(),
                        name::LONGEST
                    )));
                }
                Ok(())
            }
        }
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::Invalid, context).operation("subscribe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(subscription: &Subscription) -> String {
        let error = subscription.validate().expect_err("it is not valid");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    }

    #[test]
    fn topics_need_a_group_and_queues_have_none() {
        Subscription::topic("t").group("g").validate().expect("a topic with a group");
        Subscription::queue("q").validate().expect("a queue");
        assert!(refusal(&Subscription::topic("t")).contains("write .group(\"name\")"));
        assert!(refusal(&Subscription::queue("q").group("g")).contains("drop .group(\"g\")"));
    }

    #[test]
    fn names_follow_the_rules_unless_they_are_native() {
        for subscription in [
            Subscription::queue("a_b"),
            Subscription::topic("a_b").group("g"),
            Subscription::topic("t").group("a_b"),
            Subscription::topic("t").group(""),
            Subscription::topic(Topic::native("a_b")).group("a_b"),
        ] {
            refusal(&subscription);
        }
        Subscription::queue(Queue::native("a_b/c")).validate().expect("a native queue");
        Subscription::topic(Topic::native("a_b/c")).group("g").validate().expect("a native topic");
    }

    #[test]
    fn topic_and_group_share_64_bytes() {
        let subscription =
            |topic, group| Subscription::topic("t".repeat(topic)).group("g".repeat(group));
        subscription(60, 4).validate().expect("64 bytes");
        subscription(1, 63).validate().expect("64 bytes");
        let error = refusal(&subscription(60, 5));
        assert!(error.contains("together take 65 bytes; at most 64"), "{error}");
        assert!(refusal(&subscription(1, 65)).contains("longer than 64 bytes"));
        Subscription::topic(Topic::native("t".repeat(200)))
            .group("g".repeat(64))
            .validate()
            .expect("the broker judges the length of native names");
        Subscription::queue("q".repeat(64)).validate().expect("64 bytes");
        refusal(&Subscription::queue("q".repeat(65)));
    }

    #[test]
    fn a_queue_states_its_shape_itself() {
        let queue = Queue::new("q").ordered().partitions(4);
        let subscription = Subscription::queue(queue);
        subscription.validate().expect("the queue's own shape");
        assert!(subscription.is_ordered());
        assert_eq!(subscription.destination().partition_count(), 4);
        assert!(refusal(&Subscription::queue("q").ordered()).contains(".ordered() on the queue"));
    }

    #[test]
    fn a_topic_is_ordered_for_all_its_groups_or_in_one() {
        let all = Subscription::topic(Topic::new("t").ordered().partitions(4)).group("g");
        all.validate().expect("the topic's own shape");
        assert!(all.is_ordered());
        assert_eq!(all.destination().stated_partitions(), Some(4));
        let one = Subscription::topic("t").group("g").ordered();
        one.validate().expect("one group in order");
        assert!(one.is_ordered() && !one.destination().is_ordered());
        assert_eq!(one.destination().stated_partitions(), None);
        assert_eq!(one.destination().partition_count(), 1);
    }

    #[test]
    fn names_of_what_is_stored_never_meet() {
        let names = [
            Subscription::queue("a.b"),
            Subscription::topic("a").group("b"),
            Subscription::topic("a").group("b-c"),
            Subscription::topic("a-b").group("c"),
        ]
        .map(|subscription| [subscription.stored_name(), subscription.derived_name("dlq")])
        .concat();
        assert_eq!(names[2..4], ["a--b", "a--b--dlq"]);
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
    }

    #[test]
    fn a_queues_group_has_its_name() {
        assert_eq!(Subscription::queue("q").group_name(), "q");
        assert_eq!(Subscription::topic("t").group("g").group_name(), "g");
    }

    #[test]
    fn limits_keep_to_what_makes_sense() {
        let subscription = Subscription::queue("q");
        assert_eq!(subscription.delivery_limit(), Some(20));
        assert_eq!(subscription.lease_time(), Duration::from_secs(30));
        let least = subscription.max_deliveries(0).lease(Duration::ZERO);
        assert_eq!(least.delivery_limit(), Some(1));
        assert_eq!(least.lease_time(), Duration::from_secs(1));
        assert_eq!(least.unlimited_deliveries().delivery_limit(), None);
    }

    #[test]
    fn a_limit_that_is_not_stated_follows_the_attempts_of_the_retry_layer() {
        let subscription = Subscription::queue("q");
        let clone = subscription.clone();
        assert_eq!((clone.last_attempt(5), subscription.delivery_limit()), (5, Some(20)));
        assert_eq!((clone.last_attempt(30), subscription.delivery_limit()), (30, Some(30)));
        let stated = Subscription::queue("q").max_deliveries(3);
        assert_eq!((stated.last_attempt(5), stated.delivery_limit()), (3, Some(3)));
        assert_eq!(stated.last_attempt(2), 2);
        let none = stated.unlimited_deliveries();
        assert_eq!((none.last_attempt(99), none.delivery_limit()), (99, None));
    }
}
