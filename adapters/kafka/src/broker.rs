use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anybroker_core::{
    Broker, Capabilities, Consumer, DeadLetterFilter, Depth, Destination, ErrorKind, Inbox, Peek,
    Producer, Redrive, Result, SettlementProof, Subscription,
};
use async_trait::async_trait;
use rdkafka::ClientConfig;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::ask::blocking;
use crate::client::{Clients, WITH_METADATA, check};
use crate::cluster::{Cluster, watch};
use crate::commands::{Commands, Seat};
use crate::dead_letters::DeadLetters;
use crate::depth::depth;
use crate::error::{BROKER, closed, error_of, no_group};
use crate::membership::GroupSettings;
use crate::names::Names;
use crate::options::{KafkaBuilder, Settings};
use crate::publish::Publisher;
use crate::reader;
use crate::route::KafkaProducer;
use crate::settle::GroupSettler;
use crate::tls::check_files;
use crate::topology::Topology;
use crate::trial::Court;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often finished messages are deleted from retry topics, which keep all for ever.
const TRIM_INTERVAL: Duration = Duration::from_mins(1);

/// How long groups may take to leave when the broker is closed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to a Kafka cluster; see the [crate's documentation](crate).
pub struct KafkaBroker {
    capabilities: Capabilities,
    topology: Arc<Topology>,
    publisher: Arc<Publisher>,
    producer: Arc<KafkaProducer>,
    groups: Mutex<HashMap<String, Arc<Commands>>>,
    next_seat: AtomicU32,
    court: Court,
    /// One redrive at a time in this process; between processes transactions fence.
    redriving: Mutex<()>,
    closed: AtomicBool,
}

impl KafkaBroker {
    /// Sets up a connection.
    pub fn builder() -> KafkaBuilder {
        KafkaBuilder::default()
    }

    pub(crate) async fn open(settings: Settings) -> Result<Arc<Self>> {
        let wait = settings.options.wait;
        let mut capabilities = Capabilities::new(BROKER, settings.server.largest_payload());
        capabilities.detects_unrouted = false;
        capabilities.shares_partitions = false;
        // What a process has of its partitions goes to no other one anyway.
        capabilities.resizes_prefetch = false;
        capabilities.ordered_delays = false;
        capabilities.settlement = SettlementProof::Recorded;
        check_files(&settings.server)?;
        let clients = Clients::new(settings);
        let reader = clients.reader(&[WITH_METADATA])?;
        let waiting = Arc::new(());
        let waits = wait.then(|| Arc::downgrade(&waiting));
        let reader =
            blocking(move || check(&reader, CONNECT_TIMEOUT, waits.as_ref()).map(|()| reader))
                .await?;
        drop(waiting);
        let publisher = Arc::new(Publisher::new(&clients)?);
        let topology = Arc::new(Topology::new(clients, reader)?);
        let producer = Arc::new(KafkaProducer::new(
            Arc::clone(&topology),
            Arc::clone(&publisher),
            capabilities.clone(),
        ));
        let broker = Arc::new(Self {
            capabilities,
            topology,
            publisher,
            producer,
            groups: Mutex::default(),
            next_seat: AtomicU32::new(0),
            court: Court::default(),
            redriving: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(watch(Arc::downgrade(&broker)));
        Ok(broker)
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.topology.clients.cluster
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether the cluster answers within this time.
    pub(crate) async fn answers(&self, time: Duration) -> Result<()> {
        let topology = Arc::clone(&self.topology);
        blocking(move || check(&topology.reader(), time, None)).await
    }

    /// What the client's handles are configured with, for what only Kafka can do; credentials
    /// included.
    pub fn client_config(&self) -> ClientConfig {
        self.topology.clients.config().clone()
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.is_closed() { Err(closed(operation)) } else { Ok(()) }
    }

    /// Runs an operation while the broker is open, for no longer than a publish may take, and
    /// again when it was cut off.
    async fn within<T, F: Future<Output = Result<T>>>(
        &self,
        operation: &'static str,
        run: impl Fn() -> F,
    ) -> Result<T> {
        let run = async || {
            self.check_open(operation)?;
            run().await
        };
        let options = &self.topology.clients.settings.options;
        options.within(operation, run).await.map_err(|error| error.broker(BROKER))
    }

    fn names(&self, subscription: &Subscription) -> Result<Arc<Names>> {
        Ok(Arc::new(Names::new(subscription, self.topology.prefix())?))
    }

    /// Runs what concerns the dead letters of a group, and declares nothing; answers the default
    /// where the group has no topic for them yet.
    async fn with_dead_letters<T: Default + Send + 'static>(
        &self,
        operation: &'static str,
        subscription: &Subscription,
        run: impl FnOnce(&DeadLetters) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let names = self.names(subscription)?;
        let looked = self.within(operation, async || {
            let topology = &self.topology;
            let exists = async |topic: &str| topology.partitions(topic).await.map(|n| n.is_some());
            // The retry topic is made before the one of the dead letters, and is never without them.
            if !exists(&names.retry).await? {
                return Err(no_group(operation, &names));
            }
            exists(&names.dead_letters).await
        });
        if !looked.await? {
            return Ok(T::default());
        }
        let letters = DeadLetters {
            topology: Arc::clone(&self.topology),
            names,
            default_type: subscription.destination().name().to_owned(),
            runtime: Handle::current(),
        };
        blocking(move || run(&letters)).await
    }

    async fn flush(&self) -> Result<()> {
        let publisher = Arc::clone(&self.publisher);
        blocking(move || publisher.flush()).await
    }

    /// A place for a consumer at a group's thread.
    fn seat(
        &self,
        subscription: &Subscription,
        names: &Arc<Names>,
        commands: &Arc<Commands>,
        prefetch: usize,
    ) -> (Seat, Inbox) {
        // Errors take places too.
        let (sender, inbox) = Inbox::channel(prefetch + 16);
        let settler = GroupSettler {
            subscription: subscription.clone(),
            names: Arc::clone(names),
            commands: Arc::clone(commands),
            publisher: Arc::clone(&self.publisher),
        };
        let seat = Seat {
            number: self.next_seat.fetch_add(1, Ordering::Relaxed),
            inbox: sender,
            settler: Arc::new(settler),
            prefetch: prefetch.max(1),
            held: 0,
            leaving: false,
            lot: Vec::new(),
        };
        (seat, inbox)
    }

    /// Adds a consumer to the group's thread, or starts that.
    async fn join(&self, subscription: &Subscription, prefetch: usize) -> Result<Inbox> {
        let names = self.names(subscription)?;
        loop {
            let mut groups = self.groups.lock().await;
            self.check_open("consume")?;
            let known = groups.get(&names.group).cloned();
            let commands = known.clone().unwrap_or_default();
            let (seat, inbox) = self.seat(subscription, &names, &commands, prefetch);
            let (number, closed) = (seat.number, seat.inbox.clone());
            match known {
                Some(commands) => {
                    if commands.join(seat).is_err() {
                        drop(groups);
                        commands.ended().await;
                        if commands.failed.load(Ordering::SeqCst) {
                            // Somebody may have deleted what it reads.
                            self.topology.forget();
                        }
                        let ended = |known: &Arc<Commands>| Arc::ptr_eq(known, &commands);
                        self.groups.lock().await.retain(|_, known| !ended(known));
                        continue;
                    }
                }
                None => {
                    let group = GroupSettings {
                        names: Arc::clone(&names),
                        default_type: subscription.destination().name().to_owned(),
                        ordered: subscription.is_ordered(),
                        limit: subscription.delivery_limit(),
                        protocol: self.topology.clients.settings.protocol,
                        unreadable: self.topology.clients.settings.unreadable,
                        publisher: Arc::clone(&self.publisher),
                        topology: Arc::clone(&self.topology),
                        court: self.court.clone(),
                    };
                    let commands = Arc::clone(&commands);
                    groups.insert(names.group.clone(), Arc::clone(&commands));
                    let started = reader::start(&self.topology.clients, group, seat, commands);
                    if let Err(error) = started {
                        groups.remove(&names.group);
                        return Err(error);
                    }
                    let (topology, names) = (Arc::clone(&self.topology), Arc::clone(&names));
                    let group = groups.get(&names.group).cloned().unwrap_or_default();
                    tokio::spawn(async move {
                        while timeout(TRIM_INTERVAL, group.ended()).await.is_err() {
                            topology.trim(&names).await;
                        }
                    });
                }
            }
            tokio::spawn(async move {
                tokio::select! {
                    () = closed.closed() => commands.leave(number),
                    () = commands.ended() => {}
                }
            });
            return Ok(inbox);
        }
    }
}

#[async_trait]
impl Broker for KafkaBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::clone(&self.producer) as _
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        self.within("declare", || self.topology.declare_destination(destination)).await
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        self.within("declare", || self.topology.declare(subscription)).await
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        self.within("consume", || self.topology.declare(subscription)).await?;
        Ok(Box::new(self.join(subscription, prefetch).await?))
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        self.check_open("depth")?;
        let names = self.names(subscription)?;
        let commands = self.groups.lock().await.get(&names.group).cloned();
        if let Some(commands) = commands {
            commands.flush().await;
        }
        let topics = [
            self.topology.partitions(&names.topic).await?,
            self.topology.partitions(&names.retry).await?,
        ];
        let (topology, group) = (Arc::clone(&self.topology), Arc::clone(&names));
        let mut counted = blocking(move || {
            let [of_topic, of_retry] = topics;
            let topics = [(&*group.topic, of_topic), (&*group.retry, of_retry)];
            depth(&topology, &group, topics)
        })
        .await?;
        counted.dead_lettered =
            Some(self.with_dead_letters("depth", subscription, DeadLetters::count).await?);
        Ok(counted)
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        let filter = filter.clone();
        let peek = move |letters: &DeadLetters| letters.peek(&filter, limit).map(Some);
        let peek = self.with_dead_letters("dead letters", subscription, peek).await?;
        Ok(peek.unwrap_or(Peek { entries: Vec::new(), complete: true }))
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        let _alone = self.redriving.lock().await;
        let redrive = redrive.clone();
        let redrive = move |letters: &DeadLetters| letters.redrive(&redrive);
        self.with_dead_letters("redrive", subscription, redrive).await
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let _alone = self.redriving.lock().await;
        self.with_dead_letters("purge", subscription, DeadLetters::purge).await
    }

    async fn health(&self) -> Result<()> {
        self.check_open("health")?;
        match self.cluster().outage() {
            Some(cause) => Err(error_of(ErrorKind::Unavailable, "health", cause)),
            None => {
                let answered = self.answers(HEALTH_TIMEOUT).await;
                answered.inspect_err(|_| self.cluster().suspect())
            }
        }
    }

    async fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.producer.open.store(false, Ordering::Relaxed);
        // What waits for its destination, and the copies that settlements wait for, so that their
        // originals are finished too.
        let declared = timeout(self.publisher.timeout, self.producer.declared_all()).await;
        let flushed = self.flush().await;
        let groups: Vec<_> = self.groups.lock().await.drain().map(|(_, group)| group).collect();
        for group in &groups {
            group.close();
        }
        self.cluster().end();
        let left = timeout(LEAVE_TIMEOUT, async {
            for group in &groups {
                group.ended().await;
            }
        });
        left.await.map_err(|_| {
            let text = "closed before every group was left; what is unsettled comes again";
            error_of(ErrorKind::Timeout, "close", text)
        })?;
        declared.map_err(|_| {
            let text = "closed before all that was accepted was flushed";
            error_of(ErrorKind::Timeout, "close", text)
        })?;
        flushed
    }
}

impl fmt::Debug for KafkaBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.topology.clients.settings;
        f.debug_struct("KafkaBroker")
            .field("server", &settings.server)
            .field("options", &settings.options)
            .finish_non_exhaustive()
    }
}
