use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::{
    Broker, Capabilities, Confirmation, Consumer, DeadLetterFilter, Depth, Destination, ErrorKind,
    Outgoing, Peek, Producer, Redrive, Result, SettlementProof, Subscription,
};
use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::SqsBuilder;
use crate::clients::Clients;
use crate::consumer::consume;
use crate::dead_letters::DeadLetters;
use crate::error::{BROKER, closed, error_of, failed, no_group};
use crate::held::LONGEST_HOLD;
use crate::message::{SNS_BYTES, SQS_BYTES, max_payload, too_large};
use crate::options::{Settings, Sns};
use crate::senders::{Alive, Senders, Target};
use crate::topology::Topology;

/// A connection to SQS and SNS; see the [crate's documentation](crate).
pub struct SqsBroker {
    capabilities: Capabilities,
    topology: Arc<Topology>,
    senders: Arc<Senders>,
    open: Arc<AtomicBool>,
    /// Ends the consumers, which may still have copies to store.
    closing: watch::Sender<bool>,
    /// What consumers hold, and what ends when none of them is left.
    consuming: std::sync::Mutex<Option<Alive>>,
    consumed: tokio::sync::Mutex<mpsc::Receiver<std::convert::Infallible>>,
    /// The same for what stores messages.
    stored: tokio::sync::Mutex<mpsc::Receiver<std::convert::Infallible>>,
}

impl SqsBroker {
    /// Sets up a connection.
    pub fn builder() -> SqsBuilder {
        SqsBuilder::default()
    }

    pub(crate) async fn open(settings: Settings) -> Result<Arc<Self>> {
        let clients = Clients::new(&settings).await?;
        let mut capabilities = Capabilities::new(BROKER, max_payload(SQS_BYTES));
        capabilities.leased = true;
        capabilities.longest_hold = Some(LONGEST_HOLD);
        capabilities.start_earliest = false;
        capabilities.detects_unrouted = false;
        capabilities.complete_peek = false;
        capabilities.topics = settings.sns != Sns::Off;
        capabilities.settlement = SettlementProof::WithinLease;
        let topology = Arc::new(Topology::new(clients, settings));
        let (consuming, consumed) = mpsc::channel(1);
        let (storing, stored) = mpsc::channel(1);
        let broker = Arc::new(Self {
            capabilities,
            senders: Arc::new(Senders::new(Arc::clone(&topology), storing)),
            topology,
            open: Arc::new(AtomicBool::new(true)),
            closing: watch::channel(false).0,
            consuming: std::sync::Mutex::new(Some(consuming)),
            consumed: tokio::sync::Mutex::new(consumed),
            stored: tokio::sync::Mutex::new(stored),
        });
        broker.topology.settings.options.connect(|| broker.answers("connect")).await?;
        Ok(broker)
    }

    /// The SDK's own client, for what only SQS can do.
    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.topology.clients.calls
    }

    /// The SDK's own client, for what only SNS can do; `None` with `sns=off`.
    pub fn sns(&self) -> Option<&aws_sdk_sns::Client> {
        self.topology.clients.sns.as_ref().map(|sns| &sns.calls)
    }

    /// The URL of the queue of a subscription, which it declares.
    ///
    /// # Errors
    /// As [`Broker::declare`].
    pub async fn queue_url(&self, subscription: &Subscription) -> Result<String> {
        self.check("queue URL")?;
        Ok(self.topology.declare(subscription).await?.queue.to_string())
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.open.load(Ordering::Relaxed) { Ok(()) } else { Err(closed(operation)) }
    }

    /// Whether SQS answers. Credentials that may not list queues are credentials.
    async fn answers(&self, operation: &'static str) -> Result<()> {
        let listed = self.topology.clients.calls.list_queues().max_results(1).send().await;
        match listed {
            Ok(_) => Ok(()),
            Err(error) if is_right(&error) => Ok(()),
            Err(error) => Err(failed(operation, "SQS", error)),
        }
    }

    async fn counts(&self, url: &str) -> Result<[Option<u64>; 3]> {
        let get = self.topology.clients.calls.get_queue_attributes().queue_url(url);
        let names = [
            Attribute::ApproximateNumberOfMessages,
            Attribute::ApproximateNumberOfMessagesNotVisible,
            Attribute::ApproximateNumberOfMessagesDelayed,
        ];
        let found = get.set_attribute_names(Some(names.to_vec())).send().await;
        let found = found.map_err(|error| self.topology.failed("depth", url, error))?;
        let found = found.attributes.unwrap_or_default();
        Ok(names.map(|name| found.get(&name).and_then(|count| count.parse().ok())))
    }
}

/// Whether it only lacks the right to do this.
fn is_right<E: aws_sdk_sqs::error::ProvideErrorMetadata>(error: &E) -> bool {
    error.code().is_some_and(|code| code.starts_with("AccessDenied"))
}

#[async_trait]
impl Broker for SqsBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(SqsProducer {
            open: Arc::clone(&self.open),
            capabilities: self.capabilities.clone(),
            senders: Arc::clone(&self.senders),
        })
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        self.check("declare")?;
        match destination {
            Destination::Queue(queue) => {
                self.topology.declare(&Subscription::queue(queue.clone())).await.map(drop)
            }
            Destination::Topic(_) => self.topology.declare_topic(destination).await.map(drop),
        }
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        self.check("declare")?;
        self.capabilities.check(subscription)?;
        self.topology.declare(subscription).await.map(drop)
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        self.capabilities.check(subscription)?;
        let alive =
            self.consuming.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let alive = alive.ok_or_else(|| closed("consume"))?;
        let closing = self.closing.subscribe();
        consume(&self.topology, &self.senders, closing, alive, subscription, prefetch).await
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        self.check("depth")?;
        let found = self.topology.look(subscription).await?;
        let queue = found.queue.ok_or_else(|| no_group("depth", subscription))?;
        let mut depth = Depth::default();
        [depth.ready, depth.in_flight, depth.delayed] = self.counts(&queue).await?;
        depth.dead_lettered = match &found.dead_letters {
            Some(dead_letters) => self.counts(dead_letters).await?.into_iter().sum(),
            None => Some(0),
        };
        Ok(depth)
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        self.check("dead letters")?;
        match DeadLetters::find(&self.topology, subscription, "dead letters").await? {
            Some(letters) => letters.peek(filter, limit).await,
            None => Ok(Peek { entries: Vec::new(), complete: true }),
        }
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        self.check("redrive")?;
        match DeadLetters::find(&self.topology, subscription, "redrive").await? {
            Some(letters) => letters.redrive(redrive, &self.senders).await,
            None => Ok(0),
        }
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        self.check("purge")?;
        match DeadLetters::find(&self.topology, subscription, "purge").await? {
            Some(letters) => letters.purge().await,
            None => Ok(0),
        }
    }

    async fn health(&self) -> Result<()> {
        self.check("health")?;
        self.answers("health").await
    }

    async fn close(&self) -> Result<()> {
        self.open.store(false, Ordering::Relaxed);
        self.closing.send_replace(true);
        *self.consuming.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        let settings = &self.topology.settings;
        let limit = settings.options.publish_timeout + settings.poll + Duration::from_secs(10);
        timeout(limit, async {
            let _ = self.consumed.lock().await.recv().await;
            self.senders.close();
            let _ = self.stored.lock().await.recv().await;
        })
        .await
        .map_err(|_| {
            let text = "closed before all that was accepted was stored or settled";
            error_of(ErrorKind::Timeout, "close", text)
        })
    }
}

impl fmt::Debug for SqsBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqsBroker").field(&self.topology.settings).finish()
    }
}

#[derive(Debug)]
struct SqsProducer {
    open: Arc<AtomicBool>,
    capabilities: Capabilities,
    senders: Arc<Senders>,
}

impl SqsProducer {
    fn accept(&self, outgoing: &Outgoing) -> Result<Confirmation> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.check(&self.capabilities)?;
        let Outgoing { destination, envelope, delay, .. } = outgoing;
        let target = match destination {
            Destination::Queue(queue) => Target::Queue(Subscription::queue(queue.clone())),
            Destination::Topic(_) => Target::Topic(destination.clone()),
        };
        let most = max_payload(SNS_BYTES);
        if destination.is_topic() && envelope.payload.len() > most {
            return Err(too_large("the payload", envelope.payload.len(), most));
        }
        let hop = outgoing.hop();
        self.senders.publish(&target, envelope, &hop, delay.unwrap_or_default())
    }
}

impl Producer for SqsProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        self.accept(&outgoing).unwrap_or_else(|error| Confirmation::ready(Err(error)))
    }
}
