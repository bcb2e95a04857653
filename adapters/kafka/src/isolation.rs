//! What the broker refused together is sent once more, each record alone.
//!
//! A broker takes or refuses a batch as a whole, and does not always say which record it means: one
//! without a key, on a compacted topic, would have all beside it refused. So who was in a refused batch
//! goes through a producer whose batches hold one record, and its answer is the record's own. They keep
//! their order there; but what was on its way behind their batch may be stored before them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use crate::client::Clients;
use crate::error::code;
use crate::publish::{Overflow, Reports, Waiting, create, refused};

pub(crate) struct Isolation {
    clients: Clients,
    overflow: Arc<Overflow>,
    /// Made when it is first needed.
    producer: Mutex<Option<Arc<ThreadedProducer<Reports>>>>,
}

impl Isolation {
    pub(crate) fn new(clients: &Clients, overflow: &Arc<Overflow>) -> Self {
        let (clients, overflow) = (clients.clone(), Arc::clone(overflow));
        Self { clients, overflow, producer: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<ThreadedProducer<Reports>>>> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn producer(&self) -> anybroker_core::Result<Arc<ThreadedProducer<Reports>>> {
        let mut producer = self.lock();
        match &*producer {
            Some(producer) if !producer.context().brokers.are_lost() => Ok(Arc::clone(producer)),
            _ => {
                let alone = ("batch.num.messages", "1");
                let made = Arc::new(create(&self.clients, &self.overflow, None, &[alone])?);
                Ok(Arc::clone(producer.insert(made)))
            }
        }
    }

    /// Sends a record of a refused batch alone.
    pub(crate) fn send(&self, record: &BorrowedMessage<'_>, waiting: Box<Waiting>) {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return waiting.answer(Err(error)),
        };
        let topic = record.topic();
        let native: BaseRecord<'_, [u8], [u8], _> = BaseRecord::with_opaque_to(topic, waiting)
            .payload(record.payload().unwrap_or_default());
        let native = match record.key() {
            Some(key) => native.key(key),
            None => native,
        };
        let native = match record.headers() {
            Some(headers) => native.headers(headers.detach()),
            None => native,
        };
        if let Err((error, native)) = producer.send(native) {
            if code(&error) == Some(RDKafkaErrorCode::Fatal) {
                *self.lock() = None;
            }
            native.delivery_opaque.answer(Err(refused(topic, error)));
        }
    }

    /// Waits until all of these are stored or given up; blocks.
    pub(crate) fn flush(&self, time: Duration) -> Result<(), KafkaError> {
        let producer = self.lock().clone();
        producer.map_or(Ok(()), |producer| producer.flush(time))
    }
}

/// Whether a batch is refused for one of its records, and not for where or when it was sent.
pub(crate) fn is_of_a_record(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(
            RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidDifferentRecord
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::MessageBatchTooLarge
        )
    )
}
