use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anybroker_core::{Confirmer, Envelope, Error, ErrorKind, Hop, Result, RetryClass};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::client::{Clients, WITH_METADATA};
use crate::cluster::Cluster;
use crate::commands::{Commands, Settled};
use crate::error::{code, error_of, failed};
use crate::handle::{Brokers, Handle, WITHOUT_BROKERS};
use crate::isolation::{Isolation, is_of_a_record};
use crate::limits::COPIES;
use crate::message::headers;

/// Stores messages, and tells who waits once every replica in sync has them.
pub(crate) struct Publisher {
    /// Replaced when it will never store anything again.
    producer: Handle<ThreadedProducer<Reports>>,
    overflow: Arc<Overflow>,
    isolation: Arc<Isolation>,
    pub(crate) timeout: Duration,
    pub(crate) runtime: runtime::Handle,
}

/// A message to be stored.
pub(crate) struct Record {
    pub(crate) topic: Arc<str>,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) hop: Hop,
    pub(crate) waiting: Waiting,
    pub(crate) since: Instant,
}

/// Who waits for a message to be stored.
pub(crate) enum Waiting {
    /// Who published it.
    Publisher(Confirmer),
    /// A settlement: its original is finished only now.
    Settlement(Settlement),
}

/// What follows once the copy of a delivery is stored.
pub(crate) struct Settlement {
    pub(crate) tag: u64,
    pub(crate) commands: Arc<Commands>,
    pub(crate) confirmer: Confirmer,
    /// How often it came back by then, if the copy cannot be stored.
    pub(crate) returned: u32,
}

/// What waits for room in the client's queue.
#[derive(Default)]
pub(crate) struct Overflow {
    records: Mutex<VecDeque<Record>>,
    /// Whether there are any; then all have to queue, for their order.
    begun: AtomicBool,
    room: Notify,
    /// How often a topic was found missing that had been declared.
    missing: AtomicU64,
}

/// What the client calls back.
pub(crate) struct Reports {
    cluster: Arc<Cluster>,
    overflow: Arc<Overflow>,
    /// Where records of refused batches go; none when this is what sends them.
    isolation: Option<Arc<Isolation>>,
    pub(crate) brokers: Brokers,
}

impl Record {
    pub(crate) fn new(
        topic: Arc<str>,
        envelope: Arc<Envelope>,
        hop: Hop,
        waiting: Waiting,
    ) -> Self {
        Self { topic, envelope, hop, waiting, since: Instant::now() }
    }
}

impl Waiting {
    pub(crate) fn answer(self, result: Result<()>) {
        match (self, result) {
            (Self::Publisher(confirmer), result) => confirmer.confirm(result),
            (Self::Settlement(settlement), Ok(())) => {
                let finished = settlement.commands.settle(settlement.tag, Settled::Finished);
                settlement.confirmer.confirm(finished);
            }
            (Self::Settlement(settlement), Err(error)) => {
                let returned = settlement.returned;
                let back = Settled::GivenBack { returned, after: Duration::ZERO };
                // If it is another's by now, it has come back already.
                let _ = settlement.commands.settle(settlement.tag, back);
                settlement.confirmer.confirm(Err(error));
            }
        }
    }
}

impl Publisher {
    pub(crate) fn new(clients: &Clients) -> Result<Self> {
        let overflow = Arc::new(Overflow::default());
        let isolation = Arc::new(Isolation::new(clients, &overflow));
        let timeout = clients.settings.options.publish_timeout;
        let producer = {
            let (clients, overflow) = (clients.clone(), Arc::clone(&overflow));
            let isolation = Arc::clone(&isolation);
            Handle::new(move || create(&clients, &overflow, Some(&isolation), &[]))?
        };
        let runtime = runtime::Handle::current();
        Ok(Self { producer, overflow, isolation, timeout, runtime })
    }

    /// How often a topic was found missing that had been declared: somebody may have deleted any.
    pub(crate) fn missing(&self) -> u64 {
        self.overflow.missing.load(Ordering::Acquire)
    }

    /// Stores a message; in the order of the calls for each topic and key.
    pub(crate) fn send(self: &Arc<Self>, record: Record) {
        if !self.overflow.begun.load(Ordering::Acquire) {
            if let Some(record) = self.enqueue(record) {
                self.wait(record);
            }
            return;
        }
        self.wait(record);
    }

    /// Puts a message into the client's queue; answers it when that has no room.
    fn enqueue(&self, record: Record) -> Option<Record> {
        let Record { topic, envelope, hop, waiting, since } = record;
        let headers = headers(&envelope, &hop);
        let native: BaseRecord<'_, str, [u8], _> =
            BaseRecord::with_opaque_to(&topic, Box::new(waiting))
                // Empty, and not null: that would be a tombstone.
                .payload(&*envelope.payload)
                .headers(headers);
        let native = match &envelope.key {
            Some(key) => native.key(&**key),
            None => native,
        };
        let producer = in_use(&self.producer);
        let (error, native) = producer.send(native).err()?;
        let waiting = *native.delivery_opaque;
        let code = code(&error);
        if code == Some(RDKafkaErrorCode::Fatal) {
            self.producer.replace(&producer, BROKEN);
        }
        if matches!(code, Some(RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::Fatal)) {
            return Some(Record { topic, envelope, hop, waiting, since });
        }
        waiting.answer(Err(refused(&topic, error)));
        None
    }

    fn wait(self: &Arc<Self>, record: Record) {
        let mut records = self.overflow.lock();
        records.push_back(record);
        if !self.overflow.begun.swap(true, Ordering::AcqRel) {
            self.runtime.spawn(Arc::clone(self).refill());
        }
    }

    /// Puts what waits into the client's queue as soon as there is room.
    async fn refill(self: Arc<Self>) {
        while let Some(has_room) = self.refill_one() {
            if !has_room {
                // A message is stored or given up meanwhile, or its deadline has come.
                let _ = timeout(Duration::from_millis(50), self.overflow.room.notified()).await;
            }
        }
    }

    /// Answers whether there was room, or `None` when nothing waits any more.
    fn refill_one(&self) -> Option<bool> {
        let mut records = self.overflow.lock();
        let Some(record) = records.pop_front() else {
            self.overflow.begun.store(false, Ordering::Release);
            return None;
        };
        if record.since.elapsed() > self.timeout {
            let text = "no room for it in the queue to the broker within the publish timeout";
            let error = error_of(ErrorKind::Blocked, "publish", text);
            record.waiting.answer(Err(error.class(RetryClass::Transient)));
            return Some(true);
        }
        let refused = self.enqueue(record);
        let has_room = refused.is_none();
        records.extend(refused);
        if !has_room {
            records.rotate_right(1);
        }
        Some(has_room)
    }

    /// Waits until everything was stored or given up; blocks.
    pub(crate) fn flush(&self) -> Result<()> {
        let end = Instant::now() + self.timeout + Duration::from_secs(1);
        while !self.overflow.lock().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = end.saturating_duration_since(Instant::now());
        self.producer
            .get()
            .flush(left)
            .and_then(|()| self.isolation.flush(end.saturating_duration_since(Instant::now())))
            .map_err(|error| failed("close", "storing what was accepted", error))
    }
}

/// Why a producer is replaced: the client has given it up.
const BROKEN: &str = "the producer failed for good";

/// The producer to send with.
fn in_use(handle: &Handle<ThreadedProducer<Reports>>) -> Arc<ThreadedProducer<Reports>> {
    let producer = handle.get();
    if producer.context().brokers.are_lost() {
        // What waits in it fails at once: it was never sent, or its answer is lost.
        return handle.replace(&producer, WITHOUT_BROKERS);
    }
    producer
}

impl Overflow {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn create(
    clients: &Clients,
    overflow: &Arc<Overflow>,
    isolation: Option<&Arc<Isolation>>,
    more: &[(&str, &str)],
) -> Result<ThreadedProducer<Reports>> {
    let deadline = clients.settings.options.publish_timeout.as_millis().max(1).to_string();
    let batch = batch_size(clients.settings.server.max_payload);
    let options = [
        ("enable.idempotence", "true"),
        ("acks", "all"),
        // Java's: the same key goes to the same partition, whoever publishes.
        ("partitioner", "murmur2_random"),
        // With none, the client's thread asks again and again while requests are on their way.
        ("linger.ms", "0.5"),
        ("message.timeout.ms", &*deadline),
        ("message.max.bytes", COPIES),
        ("batch.size", &*batch),
        ("queue.buffering.max.messages", "500000"),
        ("queue.buffering.max.kbytes", "262144"),
        // Not every broker knows at once of a topic that was just created.
        ("topic.metadata.propagation.max.ms", "5000"),
        WITH_METADATA,
    ];
    let reports = Reports {
        cluster: Arc::clone(&clients.cluster),
        overflow: Arc::clone(overflow),
        isolation: isolation.cloned(),
        brokers: Brokers::default(),
    };
    clients.create(&[&options, more].concat(), reports, "connect")
}

/// How large a batch may be, unless one message is larger: what topics take is a limit of batches.
pub(crate) fn batch_size(max_payload: usize) -> String {
    max_payload.clamp(1, 1_000_000).to_string()
}

pub(crate) fn refused(topic: &str, error: KafkaError) -> Error {
    failed("publish", &format!("topic {topic:?}"), error)
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.brokers.note(text);
        self.cluster.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.cluster.error(&error, reason);
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.cluster.token()
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        match (result, &self.isolation) {
            (Ok(_), _) => waiting.answer(Ok(())),
            (Err((error, message)), Some(isolation)) if is_of_a_record(error) => {
                isolation.send(message, waiting);
            }
            (Err((error, message)), _) => waiting.answer(Err(self.failed(error, message))),
        }
        if self.overflow.begun.load(Ordering::Acquire) {
            self.overflow.room.notify_one();
        }
    }
}

impl Reports {
    fn failed(&self, error: &KafkaError, message: &BorrowedMessage<'_>) -> Error {
        let topic = rdkafka::Message::topic(message);
        let refused = refused(topic, error.clone());
        match code(error) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.overflow.missing.fetch_add(1, Ordering::AcqRel);
                refused
            }
            Some(RDKafkaErrorCode::MessageTimedOut) => {
                self.cluster.suspect();
                match self.cluster.outage() {
                    Some(cause) => {
                        let text =
                            format!("topic {topic:?}: the publish timeout has passed; {cause}");
                        error_of(ErrorKind::Timeout, "publish", text).with_source(error.clone())
                    }
                    None => refused,
                }
            }
            // A producer that fails for good may have stored what was on its way.
            Some(RDKafkaErrorCode::Fatal) => refused.class(RetryClass::Ambiguous),
            _ => refused,
        }
    }
}
