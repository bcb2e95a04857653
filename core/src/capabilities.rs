use std::time::Duration;

use crate::{Error, ErrorKind, Result, Start, Subscription};

/// What a broker can do natively, and with what limits, as data.
///
/// [`Capabilities::new`] states the broker that can do everything the library offers; an adapter
/// lowers what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about a broker")]
pub struct Capabilities {
    /// The adapter (`"memory"`).
    pub broker: &'static str,
    /// The largest payload in bytes, with room kept back for what retry and dead-lettering add.
    pub max_payload: usize,
    /// Whether there are topics; where not, they are
    /// [`Unsupported`](crate::ErrorKind::Unsupported).
    pub topics: bool,
    /// Whether deliveries are leased and must be renewed.
    pub leased: bool,
    /// How long a delivery can be held at most, however often it is renewed.
    pub longest_hold: Option<Duration>,
    /// Whether [`Start::Earliest`](crate::Start::Earliest) works for a new group of a topic.
    pub start_earliest: bool,
    /// Whether publishing to a topic without groups is seen.
    pub detects_unrouted: bool,
    /// Whether a worker's loops share one consumer of a group: where a crash counts once for each
    /// consumer, or a consumer receives more than it was asked for, which would wait for its loop
    /// while another is free. Ordered groups have one for each loop all the same.
    pub one_consumer: bool,
    /// Whether a delivery that comes back after a crash counts as an attempt.
    pub counts_crashes: bool,
    /// Whether any number of processes share a group, ordered ones apart. Where not, so many are at
    /// work as the destination has partitions; those beyond stand by until another leaves.
    pub shares_partitions: bool,
    /// Whether [`Consumer::set_prefetch`](crate::Consumer::set_prefetch) works. Where it does not,
    /// but processes share what there is, a worker asks for twice as many deliveries as it has
    /// handlers, and no more retries wait in it than it has handlers; the broker keeps the others.
    /// In an ordered subscription each of its loops asks for as many as all handlers of the
    /// subscription can hold, so that the consumers that wait for a partition have the same prefetch
    /// whatever the threads of their machines.
    pub resizes_prefetch: bool,
    /// Whether a delivery of an ordered group that is given back to wait stays hidden for as long,
    /// before the later ones of its key. Where not, a worker that drains waits for what becomes due
    /// within its drain timeout; what has longer to wait is given back, and comes too early.
    pub ordered_delays: bool,
    /// Whether looking at dead letters shows all of them, or a sample.
    pub complete_peek: bool,
    /// What an `Ok` settlement proves.
    pub settlement: SettlementProof,
}

/// What `Ok` of a settlement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettlementProof {
    /// The broker has confirmed it.
    Confirmed,
    /// It was written on the live connection; the broker does not answer settlements.
    Written,
    /// It was recorded in this process, and becomes durable a moment later or when the consumer is
    /// closed; a crash before that delivers it again.
    Recorded,
    /// The broker has accepted it, and the lease had not run out by the local clock.
    WithinLease,
}

impl Capabilities {
    /// The broker that can do everything, with payloads up to `max_payload` bytes.
    pub fn new(broker: &'static str, max_payload: usize) -> Self {
        Self {
            broker,
            max_payload,
            topics: true,
            leased: false,
            longest_hold: None,
            start_earliest: true,
            detects_unrouted: true,
            one_consumer: true,
            counts_crashes: true,
            shares_partitions: true,
            resizes_prefetch: true,
            ordered_delays: true,
            complete_peek: true,
            settlement: SettlementProof::Confirmed,
        }
    }

    /// Checks a subscription before it is declared or consumed.
    ///
    /// # Errors
    /// `Invalid` for what is wrong everywhere, `Unsupported` for what this broker cannot do.
    pub fn check(&self, subscription: &Subscription) -> Result<()> {
        subscription.validate()?;
        let is_earliest = subscription.start_position() == Start::Earliest;
        if self.start_earliest || !subscription.destination().is_topic() || !is_earliest {
            return Ok(());
        }
        let text = "a topic keeps nothing here for groups to come: drop .start(Start::Earliest)";
        let error = Error::new(ErrorKind::Unsupported, text);
        Err(error.broker(self.broker).operation("subscribe"))
    }
}

/// How many messages a group has; `None` where the broker cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Depth {
    /// Waiting to be delivered.
    pub ready: Option<u64>,
    /// Delivered, not settled.
    pub in_flight: Option<u64>,
    /// Waiting for their time.
    pub delayed: Option<u64>,
    /// In the dead-letter queue.
    pub dead_lettered: Option<u64>,
    /// Age of the oldest message that waits to be delivered.
    pub oldest: Option<Duration>,
}
