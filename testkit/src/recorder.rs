use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anybroker_core::{
    Broker, Capabilities, Confirmation, Consumer, DeadLetterFilter, Depth, Destination, Outgoing,
    Peek, Producer, Redrive, Result, Subscription, TypedMessage,
};
use async_trait::async_trait;

/// Notes what is published through it, and passes everything on to the broker it wraps.
///
/// A send is noted when it is called, whether or not the broker then takes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> anybroker::Result<()> {
/// use std::sync::Arc;
/// use anybroker::{Broker, Envelope, Publisher, Queue};
/// use anybroker_testkit::Recorder;
///
/// let recorder = Recorder::new(anybroker::connect("memory://").await?);
/// let broker: Arc<dyn Broker> = recorder.clone(); // hand this to the code under test
/// broker.publisher().publish_envelope(Queue::new("mail.send"), Envelope::new("mail.send", "{}")).await?;
///
/// let sent = recorder.published();
/// assert_eq!(sent.len(), 1);
/// assert_eq!(sent[0].destination.name(), "mail.send");
/// # Ok(()) }
/// ```
pub struct Recorder {
    broker: Arc<dyn Broker>,
    sent: Arc<Sent>,
}

type Sent = Mutex<Vec<Outgoing>>;

impl Recorder {
    /// Wraps a broker.
    pub fn new(broker: Arc<dyn Broker>) -> Arc<Self> {
        Arc::new(Self { broker, sent: Arc::default() })
    }

    /// What was published so far, in the order of the calls.
    pub fn published(&self) -> Vec<Outgoing> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The published messages of one type, decoded.
    ///
    /// # Errors
    /// `Undecodable` for a message that has the type's name and not its form.
    pub fn published_as<T: TypedMessage>(&self) -> Result<Vec<T>> {
        let sent = self.published();
        let of_type = sent.iter().filter(|outgoing| outgoing.envelope.r#type == T::TYPE);
        of_type.map(|outgoing| T::from_envelope(&outgoing.envelope)).collect()
    }
}

/// The producer of a [`Recorder`].
#[derive(Debug)]
struct Recording {
    producer: Arc<dyn Producer>,
    sent: Arc<Sent>,
}

impl Producer for Recording {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        // Noted under the lock that also orders the sends, so that both orders are one.
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.push(outgoing.clone());
        self.producer.send(outgoing)
    }
}

#[async_trait]
impl Broker for Recorder {
    fn capabilities(&self) -> &Capabilities {
        self.broker.capabilities()
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(Recording { producer: self.broker.producer(), sent: self.sent.clone() })
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        self.broker.declare_destination(destination).await
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        self.broker.declare(subscription).await
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        self.broker.consume(subscription, prefetch).await
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        self.broker.depth(subscription).await
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        self.broker.dead_letters(subscription, filter, limit).await
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        self.broker.redrive(subscription, redrive).await
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        self.broker.purge_dead_letters(subscription).await
    }

    async fn health(&self) -> Result<()> {
        self.broker.health().await
    }

    async fn close(&self) -> Result<()> {
        self.broker.close().await
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.broker).finish()
    }
}
