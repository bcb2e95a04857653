mod batch;

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{
    Confirmation, Confirmer, Destination, Envelope, ErrorKind, Hop, Result, Subscription,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::batch::Batch;
use crate::error::{BROKER, closed};
use crate::lane::{Job, Lane};
use crate::message::{self, SNS_BYTES, SQS_BYTES};
use crate::names;
use crate::topology::Topology;

const PUBLISH: &str = "publish";

/// The longest that SQS hides a new message.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_mins(15);

/// Calls at once for each destination without order.
const CALLS: usize = 16;

/// An ordered destination has so many lanes with one call at a time each; a key has one lane.
const ORDERED_LANES: u64 = 8;

/// Where a message is to be stored.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// The queue of a subscription.
    Queue(Subscription),
    /// The same, found at this URL: where it is gone, nothing is declared.
    Found(Subscription, Arc<str>),
    /// Its dead-letter queue.
    DeadLetters(Subscription),
    Topic(Destination),
}

/// A message that is to be stored.
struct Unsent {
    body: String,
    delay: i32,
    order: Option<Order>,
    deadline: Instant,
    /// Until it is answered.
    confirmer: Option<Confirmer>,
    /// Whether an earlier call may have stored it.
    in_doubt: bool,
}

struct Order {
    group: String,
    deduplication_id: String,
}

impl Job for Unsent {
    fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// Stores messages, a lane for each destination.
#[derive(Debug)]
pub(crate) struct Senders {
    topology: Arc<Topology>,
    /// By native name and part.
    lanes: Mutex<HashMap<(String, u64), Lane<Unsent>>>,
    /// Held by what has to end before the broker is closed; `None` once it closes.
    alive: Mutex<Option<Alive>>,
    room: Room,
}

pub(crate) type Alive = mpsc::Sender<Infallible>;

impl Senders {
    pub(crate) fn new(topology: Arc<Topology>, alive: Alive) -> Self {
        let (alive, room) = (Mutex::new(Some(alive)), Room::default());
        Self { topology, lanes: Mutex::default(), alive, room }
    }

    /// Keeps the broker from being closed before the answer is dropped.
    pub(crate) fn alive(&self) -> Option<Alive> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Accepts nothing more, and ends when all is stored.
    pub(crate) fn close(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stores a copy; `delay` hides it for so many whole seconds at least, where the broker can.
    /// Runs whether or not the confirmation is polled.
    ///
    /// No more copies wait than messages are held, and they are on their way to make room.
    pub(crate) fn send(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
    ) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        let limit = target.limit();
        let pushed = message::copy(envelope, hop, limit)
            .and_then(|body| fitting(body, limit))
            .or_else(|error| match target {
                Target::DeadLetters(_) | Target::Found(..)
                    if error.kind() == ErrorKind::TooLarge =>
                {
                    let (id, size) = (&envelope.id, envelope.payload.len());
                    tracing::warn!(
                        id,
                        size,
                        "a message has no room for its attempts, its attributes and why it was given up: it is stored without"
                    );
                    message::bare(envelope, limit)
                }
                _ => Err(error),
            })
            .and_then(|body| self.push(target, body, (envelope, hop), delay, confirmer));
        pushed.map_or_else(|error| Confirmation::ready(Err(error)), |()| confirmation)
    }

    /// Stores what is published, for as long as there is room.
    ///
    /// # Errors
    /// `TooLarge` where no copy for a retry or a dead letter would fit later on.
    pub(crate) fn publish(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
    ) -> Result<Confirmation> {
        let channel = self.room.channel(envelope).map_err(|error| error.broker(BROKER))?;
        let (confirmer, confirmation) = channel;
        let limit = target.limit().min(message::largest_published(SQS_BYTES));
        let body = fitting(message::body(envelope, hop)?, limit)?;
        self.push(target, body, (envelope, hop), delay, confirmer)?;
        Ok(confirmation)
    }

    fn push(
        &self,
        target: &Target,
        body: String,
        (envelope, hop): (&Envelope, &Hop),
        delay: Duration,
        confirmer: Confirmer,
    ) -> Result<()> {
        let name = target.name(self.topology.prefix())?;
        let order = target.is_ordered().then(|| Order {
            group: names::message_group(envelope),
            deduplication_id: names::deduplication_id(envelope, hop),
        });
        let part = order.as_ref().map_or(0, |order| {
            let mut hasher = DefaultHasher::new();
            order.group.hash(&mut hasher);
            hasher.finish() % ORDERED_LANES
        });
        // A FIFO queue takes no delay of a message.
        let delay = if order.is_some() { Duration::ZERO } else { delay.min(LONGEST_DELAY) };
        let delay = i32::try_from(delay.as_secs()).unwrap_or_default();
        let deadline = Instant::now() + self.topology.settings.options.publish_timeout;
        let confirmer = Some(confirmer);
        let unsent = Unsent { body, delay, order, deadline, confirmer, in_doubt: false };
        let alive = self.alive().ok_or_else(|| closed(PUBLISH))?;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry((name, part)).or_insert_with(|| {
            let calls = if target.is_ordered() { 1 } else { CALLS };
            let limit = target.limit();
            let (topology, target) = (Arc::clone(&self.topology), Arc::new(target.clone()));
            Lane::start(calls, limit, alive, move |batch| {
                Batch::of(batch).store(Arc::clone(&topology), Arc::clone(&target))
            })
        });
        lane.push(unsent).map_err(|_| closed(PUBLISH))
    }
}

impl Target {
    /// Of its lanes.
    fn name(&self, prefix: Option<&str>) -> Result<String> {
        Ok(match self {
            Self::Queue(of) => names::of_subscription(prefix, of)?.queue,
            Self::Found(_, url) => format!("found {url}"),
            Self::DeadLetters(of) => names::of_subscription(prefix, of)?.dead_letters,
            Self::Topic(topic) => format!("topic {}", names::of_topic(prefix, topic)?),
        })
    }

    /// The most bytes that one message, and one call, may have.
    fn limit(&self) -> usize {
        if matches!(self, Self::Topic(_)) { SNS_BYTES } else { SQS_BYTES }
    }

    fn is_ordered(&self) -> bool {
        match self {
            Self::Queue(of) | Self::Found(of, _) | Self::DeadLetters(of) => of.is_ordered(),
            Self::Topic(topic) => topic.is_ordered(),
        }
    }

    async fn address(&self, topology: &Arc<Topology>) -> Result<Arc<str>> {
        Ok(match self {
            Self::Queue(of) => topology.group(of).await?.queue,
            Self::Found(_, url) => Arc::clone(url),
            Self::DeadLetters(of) => topology.group(of).await?.dead_letters,
            Self::Topic(topic) => topology.topic(topic).await?,
        })
    }
}

fn fitting(body: String, limit: usize) -> Result<String> {
    if body.len() <= limit {
        return Ok(body);
    }
    Err(message::too_large("the message as JSON", body.len(), limit))
}
