use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{
    Backoff, Confirmation, Confirmer, Destination, Envelope, Error, ErrorKind, Hop, Jitter, Result,
    RetryClass, Subscription,
};
use aws_sdk_sns::types::PublishBatchRequestEntry;
use aws_sdk_sqs::types::{SendMessageBatchRequestEntry, SendMessageBatchResultEntry};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::answers::Answers;
use crate::error::{BROKER, closed, error_of};
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
    confirmer: Confirmer,
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

    /// Stores a message; `delay` hides it for so many whole seconds at least, where the broker
    /// can. Runs whether or not the confirmation is polled.
    pub(crate) fn send(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
    ) -> Confirmation {
        self.start(target, envelope, hop, delay, Confirmation::channel())
    }

    /// As [`Self::send`], for as long as there is room: of copies no more wait than messages are
    /// held, and they are on their way to make room.
    pub(crate) fn publish(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
    ) -> Result<Confirmation> {
        let channel = self.room.channel(envelope).map_err(|error| error.broker(BROKER))?;
        Ok(self.start(target, envelope, hop, delay, channel))
    }

    fn start(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
        (confirmer, confirmation): (Confirmer, Confirmation),
    ) -> Confirmation {
        match self.push(target, envelope, hop, delay, confirmer) {
            Ok(()) => confirmation,
            Err(error) => Confirmation::ready(Err(error)),
        }
    }

    fn push(
        &self,
        target: &Target,
        envelope: &Envelope,
        hop: &Hop,
        delay: Duration,
        confirmer: Confirmer,
    ) -> Result<()> {
        let (name, limit) = target.name_and_limit(self.topology.prefix())?;
        let body = message::body(envelope, hop)?;
        if body.len() > limit {
            return Err(message::too_large("the message", body.len(), limit));
        }
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
        let unsent = Unsent { body, delay, order, deadline, confirmer };
        let alive = self.alive().ok_or_else(|| closed(PUBLISH))?;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry((name, part)).or_insert_with(|| {
            let calls = if target.is_ordered() { 1 } else { CALLS };
            let (topology, target) = (Arc::clone(&self.topology), Arc::new(target.clone()));
            Lane::start(calls, limit, alive, move |batch| {
                store(Arc::clone(&topology), Arc::clone(&target), batch)
            })
        });
        lane.push(unsent).map_err(|_| closed(PUBLISH))
    }
}

impl Target {
    fn name_and_limit(&self, prefix: Option<&str>) -> Result<(String, usize)> {
        Ok(match self {
            Self::Queue(of) => (names::of_subscription(prefix, of)?.queue, SQS_BYTES),
            Self::Found(_, url) => (format!("found {url}"), SQS_BYTES),
            Self::DeadLetters(of) => (names::of_subscription(prefix, of)?.dead_letters, SQS_BYTES),
            Self::Topic(topic) => (format!("topic {}", names::of_topic(prefix, topic)?), SNS_BYTES),
        })
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

/// Stores a batch and answers each of its messages.
async fn store(topology: Arc<Topology>, target: Arc<Target>, batch: Vec<Unsent>) {
    // What has waited too long takes the others' time not along.
    let now = Instant::now();
    let (batch, late): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|unsent| unsent.deadline > now);
    for unsent in late {
        let text = "its turn did not come within the publish timeout";
        let error = error_of(ErrorKind::Timeout, PUBLISH, text).class(RetryClass::Transient);
        unsent.confirmer.confirm(Err(error));
    }
    let (mut batch, mut attempt) = (batch, 0);
    while !batch.is_empty() {
        let answers = match store_all(&topology, &target, &batch).await {
            Ok(answers) => answers,
            Err(error) => batch.iter().map(|_| Err(error.again())).collect(),
        };
        attempt += 1;
        let pause = pause(attempt, &batch);
        let mut refused = Vec::new();
        for (unsent, answer) in batch.into_iter().zip(answers) {
            let repeat = answer.as_ref().is_err_and(|error| {
                // In order a later one may be stored already.
                let alone = unsent.order.is_none() && Instant::now() + pause < unsent.deadline;
                alone && error.retry_class() == RetryClass::Transient
            });
            if repeat {
                refused.push(unsent);
            } else {
                unsent.confirmer.confirm(answer);
            }
        }
        batch = refused;
        if !batch.is_empty() {
            sleep(pause).await;
        }
    }
}

/// How long to wait after so many attempts; calls that failed together are not repeated together.
fn pause(attempt: u32, batch: &[Unsent]) -> Duration {
    let backoff = Backoff::exponential(Duration::from_millis(50)).cap(Duration::from_secs(2));
    let seed = batch.first().map_or("", |unsent| &unsent.body);
    backoff.jitter(Jitter::Equal).delay(attempt, seed)
}

/// Repeats a call that has stored nothing for certain, until the deadline. To repeat any other one
/// could store a message twice, but on FIFO, where the de-duplication id prevents that.
async fn store_all(
    topology: &Arc<Topology>,
    target: &Target,
    batch: &[Unsent],
) -> Result<Vec<Result<()>>> {
    let now = Instant::now();
    let deadline = batch.iter().map(|unsent| unsent.deadline).min().unwrap_or(now);
    let mut attempt = 0;
    let mut last = None;
    let mut redeclared = false;
    // A topic that was deleted has lost its groups: to create it anew would store into nothing.
    let declares = matches!(target, Target::Queue(_) | Target::DeadLetters(_));
    let queue_is_gone = |error: &Error| error.kind() == ErrorKind::NotFound && declares;
    loop {
        let address = timeout_at(deadline, target.address(topology)).await.unwrap_or_else(|_| {
            Err(last.take().unwrap_or_else(|| {
                let text = "the destination was not declared within the publish timeout";
                error_of(ErrorKind::Timeout, PUBLISH, text).class(RetryClass::Transient)
            }))
        });
        let stored = match address {
            Ok(address) => {
                let call = call(topology, target, &address, batch);
                let answered = timeout_at(deadline, call).await.unwrap_or_else(|_| {
                    let text = "the broker did not answer within the publish timeout";
                    Err(error_of(ErrorKind::Timeout, PUBLISH, text))
                });
                if answered.as_ref().is_err_and(queue_is_gone) {
                    topology.forget(&address);
                }
                answered
            }
            // Nothing was sent yet, whatever became of the declaration.
            Err(error) if error.retry_class() == RetryClass::Ambiguous => {
                Err(error.class(RetryClass::Transient))
            }
            Err(error) => Err(error),
        };
        let error = match stored {
            Ok(answers) => return Ok(answers),
            Err(error) => error,
        };
        let repeat = match error.retry_class() {
            RetryClass::Transient => true,
            RetryClass::Ambiguous => target.is_ordered(),
            // It was deleted: the next round declares it again.
            RetryClass::Permanent => {
                queue_is_gone(&error) && !std::mem::replace(&mut redeclared, true)
            }
        };
        attempt += 1;
        let pause = pause(attempt, batch);
        if !repeat || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "storing again");
        last = Some(error);
        sleep(pause).await;
    }
}

/// One call; the answers are in the order of the batch.
async fn call(
    topology: &Arc<Topology>,
    target: &Target,
    address: &str,
    batch: &[Unsent],
) -> Result<Vec<Result<()>>> {
    let mut answers = Answers::new(PUBLISH, batch.len());
    if let Target::Topic(_) = target {
        let sns = topology.clients.sns.as_ref().ok_or_else(|| closed(PUBLISH))?;
        let entries = batch.iter().enumerate().map(|(id, unsent)| {
            let entry = PublishBatchRequestEntry::builder().id(id.to_string());
            let entry = entry.message(unsent.body.clone());
            entry
                .set_message_group_id(unsent.order.as_ref().map(|order| order.group.clone()))
                .set_message_deduplication_id(
                    unsent.order.as_ref().map(|order| order.deduplication_id.clone()),
                )
                .build()
        });
        let entries = entries.collect::<Result<_, _>>().map_err(unbuilt)?;
        let publish = sns.sends.publish_batch().topic_arn(address);
        let sent = publish.set_publish_batch_request_entries(Some(entries)).send().await;
        let sent = sent.map_err(|error| topology.failed(PUBLISH, address, error))?;
        let refused = sent.failed().iter();
        answers.fill(
            address,
            sent.successful().iter().filter_map(|entry| entry.id()),
            refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
        );
    } else {
        let entries = batch.iter().enumerate().map(|(id, unsent)| {
            let entry = SendMessageBatchRequestEntry::builder().id(id.to_string());
            let entry = entry.message_body(unsent.body.clone());
            entry
                .set_delay_seconds((unsent.delay > 0).then_some(unsent.delay))
                .set_message_group_id(unsent.order.as_ref().map(|order| order.group.clone()))
                .set_message_deduplication_id(
                    unsent.order.as_ref().map(|order| order.deduplication_id.clone()),
                )
                .build()
        });
        let entries = entries.collect::<Result<_, _>>().map_err(unbuilt)?;
        let call = topology.clients.sends.send_message_batch().queue_url(address);
        let sent = call.set_entries(Some(entries)).send().await;
        let sent = sent.map_err(|error| topology.failed(PUBLISH, address, error))?;
        let refused = sent.failed().iter();
        answers.fill(
            address,
            sent.successful().iter().map(SendMessageBatchResultEntry::id),
            refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
        );
    }
    Ok(answers.all)
}

fn unbuilt(error: aws_sdk_sqs::error::BuildError) -> Error {
    error_of(ErrorKind::Invalid, PUBLISH, "the message has no form").with_source(error)
}
