use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::{
    Broker, Capabilities, Confirmation, Consumer, DeadLetterFilter, Declare, Depth, Destination,
    ErrorKind, Outgoing, Peek, Producer, Redrive, Result, SettlementProof, Subscription,
};
use async_trait::async_trait;
use lapin::Channel;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::RabbitmqBuilder;
use crate::acks::SETTLING;
use crate::consume::consume;
use crate::dead_letters::DeadLetters;
use crate::error::{BROKER, closed, error_of, not_found};
use crate::group::{Group, LAST_TIER, tier};
use crate::link::{Link, Supervisor};
use crate::message::property;
use crate::options::Settings;
use crate::publish::{Publishers, Target};
use crate::settle::delayed;
use crate::topology::{Needs, Place, Topology};

/// How many connections publish. Apart from the one that consumes, since the broker stops reading
/// from a connection that it blocks, acknowledgements included.
const PUBLISHING: usize = 2;

/// RabbitMQ's default `consumer_timeout`.
const LONGEST_HOLD: Duration = Duration::from_mins(30);

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to RabbitMQ 3.10 or later; see the [crate's documentation](crate).
pub struct RabbitmqBroker {
    capabilities: Capabilities,
    topology: Arc<Topology>,
    publishers: Arc<Publishers>,
    publishing: Vec<Link>,
    supervisors: Vec<Supervisor>,
    /// Ends the consumers, which may still have copies to store.
    closing: Arc<watch::Sender<bool>>,
    /// Ends the publishers, after the consumers.
    draining: watch::Sender<bool>,
    /// Whether the application may publish.
    open: Arc<AtomicBool>,
    /// Whether anything was consumed, so that acknowledgements may be on their way.
    consumed: AtomicBool,
}

impl RabbitmqBroker {
    /// Sets up a connection.
    pub fn builder() -> RabbitmqBuilder {
        RabbitmqBuilder::default()
    }

    pub(crate) async fn open(settings: Settings) -> Result<Arc<Self>> {
        let settings = Arc::new(settings);
        let (consuming, supervisor) = Link::open(Arc::clone(&settings), "consume").await?;
        let mut supervisors = vec![supervisor];
        let mut publishing = Vec::new();
        for _ in 0..PUBLISHING {
            let (link, supervisor) = Link::open(Arc::clone(&settings), "publish").await?;
            publishing.push(link);
            supervisors.push(supervisor);
        }
        let mut capabilities = Capabilities::new(BROKER, settings.server.largest_payload());
        capabilities.longest_hold = Some(LONGEST_HOLD);
        capabilities.start_earliest = false;
        capabilities.ordered_delays = false;
        // A consumer keeps the prefetch that it began with.
        capabilities.resizes_prefetch = false;
        capabilities.settlement = SettlementProof::Written;
        let topology = Arc::new(Topology::new(settings, consuming));
        let (draining, drained) = watch::channel(false);
        let publishers = Arc::new(Publishers::start(&topology, &publishing, &drained));
        Ok(Arc::new(Self {
            capabilities,
            topology,
            publishers,
            publishing,
            supervisors,
            closing: Arc::new(watch::channel(false).0),
            draining,
            open: Arc::new(AtomicBool::new(true)),
            consumed: AtomicBool::new(false),
        }))
    }

    /// Opens a channel of the client on the connection that consumes, for what only RabbitMQ can
    /// do. It closes when its last clone is dropped.
    ///
    /// # Errors
    /// `Closed`, `Unavailable`.
    pub async fn channel(&self) -> Result<Channel> {
        self.within("open a channel", || self.topology.link.channel("open a channel")).await
    }

    /// Runs an operation while the broker is open, for no longer than a publish may take, and
    /// again when it was cut off by a lost connection.
    async fn within<T, F: Future<Output = Result<T>>>(
        &self,
        operation: &'static str,
        run: impl Fn() -> F,
    ) -> Result<T> {
        if *self.closing.borrow() {
            return Err(closed(operation));
        }
        let options = &self.topology.settings.options;
        options.within(operation, run).await.map_err(|error| error.broker(BROKER))
    }

    async fn dead_letter_queue(
        &self,
        subscription: &Subscription,
        operation: &'static str,
    ) -> Result<Option<DeadLetters>> {
        let group = self.topology.group(subscription)?;
        let find = || DeadLetters::find(&self.topology, Arc::clone(&group), operation);
        self.within(operation, find).await
    }

    async fn counts(&self, group: &Group) -> Result<Depth> {
        let (mut ready, mut delayed) = (0, 0);
        for queue in &group.queues {
            let Some(count) = self.topology.count(queue).await? else {
                return Err(not_found("depth", queue));
            };
            ready += count;
            for power in 0..=LAST_TIER {
                delayed += self.topology.count(&tier(queue, power)).await?.unwrap_or(0);
            }
        }
        let mut depth = Depth::default();
        depth.ready = Some(ready);
        depth.delayed = Some(delayed);
        // A group that was cut off while it was declared has no queue for them yet.
        depth.dead_lettered =
            Some(self.topology.count(&group.dead_letters()).await?.unwrap_or_default());
        Ok(depth)
    }
}

#[async_trait]
impl Broker for RabbitmqBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(RabbitmqProducer {
            open: Arc::clone(&self.open),
            capabilities: self.capabilities.clone(),
            topology: Arc::clone(&self.topology),
            publishers: Arc::clone(&self.publishers),
        })
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        let place = self.topology.destination(destination)?;
        self.within("declare", || self.topology.ensure_place(&place)).await?;
        self.topology.outlives_a_kill().await;
        Ok(())
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        self.capabilities.check(subscription)?;
        let place = Place::Group(self.topology.group(subscription)?);
        self.within("declare", || self.topology.ensure_place(&place)).await?;
        self.topology.outlives_a_kill().await;
        Ok(())
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        self.capabilities.check(subscription)?;
        self.consumed.store(true, Ordering::Relaxed);
        let open = || {
            let (topology, publishers) = (Arc::clone(&self.topology), Arc::clone(&self.publishers));
            consume(topology, publishers, &self.closing, subscription, prefetch)
        };
        self.within("consume", open).await
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        let group = self.topology.group(subscription)?;
        self.within("depth", || self.counts(&group)).await
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        match self.dead_letter_queue(subscription, "dead letters").await? {
            Some(letters) => letters.peek(filter, limit).await,
            None => Ok(Peek { entries: Vec::new(), complete: true }),
        }
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        match self.dead_letter_queue(subscription, "redrive").await? {
            Some(letters) => letters.redrive(redrive, &self.publishers).await,
            None => Ok(0),
        }
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        match self.dead_letter_queue(subscription, "purge").await? {
            Some(letters) => letters.purge().await,
            None => Ok(0),
        }
    }

    async fn health(&self) -> Result<()> {
        if *self.closing.borrow() {
            return Err(closed("health"));
        }
        let links = || self.publishing.iter().chain([&self.topology.link]);
        if let Some(cause) = links().find_map(Link::outage) {
            return Err(error_of(ErrorKind::Unavailable, "health", cause));
        }
        let answers = async {
            for link in links() {
                link.channel("health").await?;
            }
            Ok(())
        };
        timeout(HEALTH_TIMEOUT, answers).await.unwrap_or_else(|_| {
            let text = "the broker did not answer within 5 s";
            Err(error_of(ErrorKind::Unavailable, "health", text))
        })?;
        if links().any(Link::is_blocked) {
            let text = "the broker takes no publishes: it is short of memory or disk";
            return Err(error_of(ErrorKind::Blocked, "health", text));
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if self.closing.send_replace(true) {
            return Ok(());
        }
        self.open.store(false, Ordering::Relaxed);
        // Readers and lanes hold a receiver each until they are done. A lane is by its deadlines.
        let limit = self.topology.settings.options.publish_timeout + Duration::from_secs(1);
        let flushed = timeout(limit, async {
            self.closing.closed().await;
            self.draining.send_replace(true);
            self.draining.closed().await;
        })
        .await;
        if self.consumed.load(Ordering::Relaxed) {
            sleep(SETTLING).await;
        }
        self.topology.questions.close().await;
        for supervisor in &self.supervisors {
            supervisor.close().await;
        }
        flushed.map_err(|_| {
            let text = "closed before all that was accepted was flushed";
            error_of(ErrorKind::Timeout, "close", text)
        })
    }
}

impl fmt::Debug for RabbitmqBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RabbitmqBroker").field(&self.topology.settings).finish()
    }
}

struct RabbitmqProducer {
    open: Arc<AtomicBool>,
    capabilities: Capabilities,
    topology: Arc<Topology>,
    publishers: Arc<Publishers>,
}

impl RabbitmqProducer {
    fn target(&self, outgoing: &Outgoing) -> Result<Target> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.check(&self.capabilities)?;
        let Outgoing { destination, envelope, delay, allow_unrouted } = outgoing;
        match self.topology.destination(destination)? {
            Place::Topic(topic) => Ok(Target {
                exchange: topic.exchange.clone(),
                routing_key: property(&envelope.r#type),
                mandatory: !allow_unrouted,
                needs: Needs { place: Place::Topic(topic), helper: None },
            }),
            // Elsewhere there may be no delay queues: what comes early waits where it is received.
            Place::Group(group) => {
                let declares = self.topology.settings.options.declare == Declare::Create;
                let delay = delay.filter(|_| declares).unwrap_or_default();
                delayed(&group, envelope, delay)
            }
        }
    }
}

impl Producer for RabbitmqProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        let hop = outgoing.hop();
        match self.target(&outgoing) {
            Ok(target) => self.publishers.send(target, outgoing.envelope, hop),
            Err(error) => Confirmation::ready(Err(error)),
        }
    }
}

impl fmt::Debug for RabbitmqProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqProducer").finish_non_exhaustive()
    }
}
