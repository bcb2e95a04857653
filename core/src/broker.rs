use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Capabilities, Confirmation, DeadLetterFilter, Delivery, Depth, Destination, Envelope, Error,
    ErrorKind, Hop, Peek, Redrive, Result, Settler, Subscription,
};

/// A connection to a broker. Applications hold it as `Arc<dyn Broker>`.
///
/// Everything it declares, it declares idempotently and durably. It validates what it is given:
/// envelopes, destinations and subscriptions. A native name that is not empty and has no NUL is
/// valid whatever it holds: a broker that it could harm checks it, or answers
/// [`Unsupported`](crate::ErrorKind::Unsupported).
#[async_trait]
pub trait Broker: Any + Send + Sync + fmt::Debug {
    /// What this broker can do, and with what limits.
    fn capabilities(&self) -> &Capabilities;

    /// A handle to publish with; cheap.
    fn producer(&self) -> Arc<dyn Producer>;

    /// Creates the destination, or checks that it exists, as the `declare` option says; and that it
    /// has this shape, where the broker can tell.
    async fn declare_destination(&self, destination: &Destination) -> Result<()>;

    /// Creates destination, group and dead-letter queue, or checks them. Messages published from
    /// here on reach the group.
    async fn declare(&self, subscription: &Subscription) -> Result<()>;

    /// Declares the subscription and starts to consume it. At most `prefetch` deliveries (0 counts
    /// as 1) are unsettled at a time; each holds a place until it is settled or dropped.
    /// [`Consumer::set_prefetch`] changes the number later.
    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>>;

    /// Counts the group's messages; what the broker cannot tell is `None`.
    ///
    /// # Errors
    /// `NotFound` where there is no such group. This and the next three create nothing: a group that
    /// a look had made would collect messages that nobody handles.
    async fn depth(&self, subscription: &Subscription) -> Result<Depth>;

    /// Looks at up to `limit` dead letters of the group, the oldest first, and changes nothing.
    ///
    /// # Errors
    /// `NotFound` where there is no such group. One that was cut off while it was declared may have
    /// no dead-letter queue yet, and so has no dead letters.
    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek>;

    /// Sends dead letters back to their group, and to it only; answers how many. What was sent
    /// back is no longer in the dead-letter queue, so that a second call sends nothing twice.
    ///
    /// # Errors
    /// As [`dead_letters`](Self::dead_letters).
    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64>;

    /// Removes the dead letters that are there now; answers how many.
    ///
    /// # Errors
    /// As [`dead_letters`](Self::dead_letters).
    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64>;

    /// Answers whether the broker answers, and would take a publish where that can be asked.
    ///
    /// # Errors
    /// `Unavailable` with the last cause and since when it is away; `Blocked` where a publish would
    /// be refused for now; `Closed`.
    async fn health(&self) -> Result<()>;

    /// Flushes what was accepted, and closes the connection. What its consumers hold comes back at
    /// once, and counts as after a crash, since handlers may have run. Later calls answer
    /// [`Closed`](crate::ErrorKind::Closed), later settlements
    /// [`StaleDelivery`](crate::ErrorKind::StaleDelivery).
    async fn close(&self) -> Result<()>;
}

/// Publishes envelopes.
pub trait Producer: Send + Sync + fmt::Debug {
    /// Publishes; resolves when the broker has the message durably.
    ///
    /// Many sends may be in flight; they are coalesced into the broker's own batches.
    ///
    /// # Ordering
    /// Messages of one producer and key are stored in the order of the calls.
    ///
    /// # Cancel safety
    /// The send goes on when the confirmation is dropped.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`, `Unroutable`, `Unsupported` and `Closed`; `NotFound`, `Mismatch` and
    /// `Denied` where the destination or the right to it is missing; `Blocked`, `Timeout`,
    /// `Unavailable`, and `Broker` for what fits none of them. The retry class says whether to try
    /// again: it is `Ambiguous` where the broker may have the message.
    fn send(&self, outgoing: Outgoing) -> Confirmation;
}

/// Receives the deliveries of one subscription.
#[async_trait]
pub trait Consumer: Send + fmt::Debug {
    /// Appends up to `max` deliveries to `out`; pending while there are none. Asked for 0 it is
    /// ready at once, and waits no more: a message that woke it wakes another consumer.
    ///
    /// # Cancel safety
    /// Nothing is held back between polls: what was not handed out is handed out next.
    ///
    /// # Errors
    /// A transient error ends nothing: poll again. `Closed` and permanent errors end the consumer.
    /// What it handed out is handled and settled all the same, its lease renewed, unless it
    /// [is lost](Settler::is_lost).
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>>;

    /// Changes how many deliveries may be unsettled at a time. A smaller number takes nothing back:
    /// nothing more is received until fewer are unsettled.
    ///
    /// A worker asks for as many as its handlers can start, and for more only while handlers are fast
    /// or retries wait: what a process holds beyond that is kept from the other processes of its
    /// group. The number changes often while retries come and go, so a consumer that pays for each
    /// change may follow a smaller number late.
    ///
    /// # Capabilities
    /// By default nothing changes; the adapter then says so with
    /// [`resizes_prefetch`](Capabilities::resizes_prefetch).
    fn set_prefetch(&mut self, prefetch: usize) {
        let _ = prefetch;
    }

    /// The settler to renew with, and how long a lease lasts, which may be less than the
    /// subscription asks for; `None` where deliveries are not leased.
    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        None
    }

    /// Stops receiving, gives back what was not handed out, and ends once the settlements so far
    /// are with the broker. Dropping does the same without waiting.
    ///
    /// The worker closes first, and settles what its handlers finish meanwhile: what was handed
    /// out can be settled until it is dropped. Where that takes the consumer itself (a partition
    /// that it owns), this ends when all is settled or dropped.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// What a producer sends: an envelope, where to, and when.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub destination: Destination,
    /// What goes there.
    pub envelope: Envelope,
    /// How long no handler may see it.
    pub delay: Option<Duration>,
    /// Whether a topic without groups may swallow it; otherwise that is `Unroutable` where the
    /// broker can tell.
    pub allow_unrouted: bool,
}

impl Outgoing {
    /// An envelope for a destination, without delay.
    pub fn new(destination: impl Into<Destination>, envelope: Envelope) -> Self {
        Self { destination: destination.into(), envelope, delay: None, allow_unrouted: false }
    }

    /// Delays it. More than a subscription's [`max_delay`](Subscription::max_delay), a year unless set,
    /// makes it a dead letter where the worker sees to the delay.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The hop that it is stored with.
    pub fn hop(&self) -> Hop {
        let delay = self.delay.filter(|delay| !delay.is_zero());
        delay.map(Hop::delayed).unwrap_or_default()
    }

    /// Checks the envelope and the size of its payload; an adapter does so before each send, and
    /// checks the destination where it looks it up.
    ///
    /// # Errors
    /// `Invalid` and `TooLarge`.
    pub fn check(&self, capabilities: &Capabilities) -> Result<()> {
        self.envelope.validate()?;
        let (size, most) = (self.envelope.payload.len(), capabilities.max_payload);
        if size <= most {
            return Ok(());
        }
        let text = format!(
            "the payload has {size} bytes, at most {most} fit; store it elsewhere and send a reference, or raise max-payload where the broker takes more"
        );
        let error = Error::new(ErrorKind::TooLarge, text);
        Err(error.broker(capabilities.broker).operation("publish"))
    }
}

impl dyn Broker {
    /// The adapter's own type, for what only it can do.
    pub fn downcast_ref<B: Broker>(&self) -> Option<&B> {
        (self as &dyn Any).downcast_ref()
    }
}
