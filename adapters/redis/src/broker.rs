use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{
    Broker, Capabilities, Consumer, DeadLetterFilter, Depth, Destination, ErrorKind, Peek,
    Producer, Redrive, Result, Subscription,
};
use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Client, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::consume::consume;
use crate::dead_letters::DeadLetters;
use crate::durability::{Durability, judge};
use crate::error::{BROKER, closed, error_of};
use crate::idempotency::RedisIdempotencyStore;
use crate::layout::Group;
use crate::link::{Call, Link};
use crate::options::{RedisBuilder, Settings};
use crate::publish::{Job, RedisProducer, Writer};
use crate::scripts::{DEPTH, array, integer};
use crate::topology::Topology;

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to Redis 7.0 or later, or to Valkey; see the [crate's documentation](crate).
pub struct RedisBroker {
    capabilities: Capabilities,
    topology: Arc<Topology>,
    publishing: Arc<Link>,
    clients: Arc<[Client]>,
    jobs: mpsc::UnboundedSender<Job>,
    room: Room,
    /// Ends the consumers.
    closing: watch::Sender<bool>,
    /// Ends the publisher, once all that was accepted is stored.
    draining: watch::Sender<bool>,
    /// Whether the application may publish.
    open: Arc<AtomicBool>,
}

impl RedisBroker {
    /// Sets up a connection.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    pub(crate) async fn open(settings: Settings) -> Result<Arc<Self>> {
        let settings = Arc::new(settings);
        let clients: Arc<[Client]> = settings.clients()?.into();
        // Apart, so that settlements do not wait behind large messages.
        let link = Arc::new(Link::in_background("settle", Arc::clone(&clients)));
        let publishing = Arc::new(Link::new("publish", Arc::clone(&clients)));
        let connected = async || {
            link.get().await?;
            Durability::of(&link).await
        };
        let durability = settings.options.connect(connected).await?;
        judge(&durability, settings.require_durability)?;
        for link in [&link, &publishing] {
            tokio::spawn(Link::watch(Arc::downgrade(link)));
        }
        let mut capabilities = Capabilities::new(BROKER, settings.server.largest_payload());
        capabilities.leased = true;
        capabilities.ordered_delays = false;
        // A topic keeps what no group waits for.
        capabilities.detects_unrouted = false;
        let topology = Arc::new(Topology::new(link, settings));
        let (draining, drained) = watch::channel(false);
        let (jobs, receiver) = mpsc::unbounded_channel();
        let writer = Writer::new(Arc::clone(&publishing), Arc::clone(&topology));
        tokio::spawn(writer.run(receiver, drained));
        Ok(Arc::new(Self {
            capabilities,
            topology,
            publishing,
            clients,
            jobs,
            room: Room::default(),
            closing: watch::channel(false).0,
            draining,
            open: Arc::new(AtomicBool::new(true)),
        }))
    }

    /// The connection that settles, for what only Redis can do. Commands that block would hold up
    /// all settlements.
    ///
    /// # Errors
    /// `Closed`, `Unavailable`.
    pub async fn connection(&self) -> Result<MultiplexedConnection> {
        self.within("connection", || self.topology.link.get()).await.map(|(_, found)| found)
    }

    /// A store of handled messages on this connection and with its prefix. It works with any
    /// broker, until this one is closed.
    pub fn idempotency_store(&self) -> RedisIdempotencyStore {
        let prefix = self.topology.settings.options.prefix.as_deref();
        RedisIdempotencyStore::on(Arc::clone(&self.topology.link), prefix)
    }

    /// Asks the server whether its settings keep the guarantee.
    ///
    /// # Errors
    /// `Closed`, `Unavailable`.
    pub async fn durability(&self) -> Result<Durability> {
        self.within("durability", || Durability::of(&self.topology.link)).await
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

    fn letters<'a>(&'a self, group: &'a Group) -> DeadLetters<'a> {
        let most = self.topology.settings.server.max_payload;
        DeadLetters { link: &self.topology.link, group, most }
    }

    async fn counts(&self, group: &Group) -> Result<Depth> {
        let link = &self.topology.link;
        let (mut ready, mut in_flight, mut delayed, mut oldest) = (0, 0, 0, None);
        for partition in &group.partitions {
            let call = Call::new(&DEPTH)
                .key(&partition.stream)
                .key(&partition.retry)
                .key(&partition.delayed)
                .arg(&group.name);
            let counts: Vec<_> = array(link.run("depth", &call).await?)
                .iter()
                .map(|count| integer(count).unwrap_or_default())
                .collect();
            let [more_ready, more_in_flight, more_delayed, age] = counts[..] else {
                let text =
                    format!("group {:?} does not exist; declare the subscription", group.name);
                return Err(error_of(ErrorKind::NotFound, "depth", text));
            };
            ready += u64::try_from(more_ready).unwrap_or(0);
            in_flight += u64::try_from(more_in_flight).unwrap_or(0);
            delayed += u64::try_from(more_delayed).unwrap_or(0);
            oldest = oldest.max(u64::try_from(age).ok());
        }
        let mut depth = Depth::default();
        depth.ready = Some(ready);
        depth.in_flight = Some(in_flight);
        depth.delayed = Some(delayed);
        depth.oldest = oldest.map(Duration::from_millis);
        let length = link.query("depth", redis::cmd("XLEN").arg(&group.dead_letters)).await?;
        depth.dead_lettered = Some(length);
        Ok(depth)
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(RedisProducer {
            open: Arc::clone(&self.open),
            capabilities: self.capabilities.clone(),
            topology: Arc::clone(&self.topology),
            jobs: self.jobs.clone(),
            room: self.room.clone(),
        })
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        self.within("declare", || self.topology.declare(destination)).await
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        let group = self.topology.group(subscription)?;
        let start = subscription.start_position();
        self.within("declare", || self.topology.declare_group(&group, start)).await
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        let open = || {
            let (topology, clients) = (Arc::clone(&self.topology), Arc::clone(&self.clients));
            consume(topology, clients, self.closing.subscribe(), subscription, prefetch)
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
        let group = self.topology.group(subscription)?;
        let letters = self.letters(&group);
        self.within("dead letters", || letters.peek(filter, limit)).await
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        let group = self.topology.group(subscription)?;
        self.within("redrive", || async { Ok(()) }).await?;
        self.letters(&group).redrive(redrive).await
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let group = self.topology.group(subscription)?;
        self.within("purge", || async { Ok(()) }).await?;
        self.letters(&group).purge().await
    }

    async fn health(&self) -> Result<()> {
        if *self.closing.borrow() {
            return Err(closed("health"));
        }
        let links = [&self.topology.link, &self.publishing];
        if let Some(cause) = links.iter().find_map(|link| link.outage()) {
            return Err(error_of(ErrorKind::Unavailable, "health", cause));
        }
        // Writes nothing, since there is no such stream, and is refused as a publish would be: by a
        // server that is full, cannot write to its disk or has become a replica.
        let mut probe = redis::cmd("XADD");
        let prefix = self.topology.settings.options.prefix.as_deref().unwrap_or("anybroker");
        probe.arg(format!("{prefix}--health")).arg("NOMKSTREAM").arg("*").arg("health").arg("");
        let answers = async {
            for link in links {
                link.query::<Value>("health", &redis::cmd("PING")).await?;
            }
            match links[1].query::<Value>("health", &probe).await {
                // It has the rights for its own keys alone.
                Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
                answered => answered.map(drop),
            }
        };
        timeout(HEALTH_TIMEOUT, answers).await.unwrap_or_else(|_| {
            let text = "the server did not answer within 5 s";
            Err(error_of(ErrorKind::Unavailable, "health", text))
        })
    }

    async fn close(&self) -> Result<()> {
        if self.closing.send_replace(true) {
            return Ok(());
        }
        self.open.store(false, Ordering::Relaxed);
        self.draining.send_replace(true);
        // Readers and the publisher hold a receiver each until they are done. They end side by
        // side: a reader that takes its time leaves the publisher all of its own.
        let limit = self.topology.settings.options.publish_timeout + Duration::from_secs(1);
        let ended = async { tokio::join!(self.closing.closed(), self.draining.closed()) };
        let flushed = timeout(limit, ended).await;
        self.topology.link.close();
        self.publishing.close();
        flushed.map(drop).map_err(|_| {
            let text = "closed before all that was accepted was flushed";
            error_of(ErrorKind::Timeout, "close", text)
        })
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisBroker").field(&self.topology.settings).finish()
    }
}
