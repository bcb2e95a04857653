use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anybroker_core::adapter::prefixed;
use anybroker_core::{Declare, Destination, ErrorKind, Result, Subscription};
use futures_util::{TryFutureExt, TryStreamExt, stream};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{error_of, failed};
use crate::group::{Declared, Group, LAST_TIER, invalid, runs, tier};
use crate::link::{Link, Questions, while_open};
use crate::options::{Binding, Settings};
use crate::shape::shape_of;

/// A quorum queue that the server has just made, and what is in it, is gone when the server is
/// killed: the names of its members are written every 500 ms only (measured on 3.10 and 4.3).
/// Nothing counts as stored before.
const NEW: Duration = Duration::from_secs(1);

/// How many queues of a group are declared at once.
const AT_ONCE: usize = 16;

/// Knows what is stored, and declares it, once for each epoch.
pub(crate) struct Topology {
    pub(crate) settings: Arc<Settings>,
    pub(crate) link: Link,
    pub(crate) questions: Arc<Questions>,
    /// How often everything was forgotten.
    forgotten: AtomicU64,
    destinations: Known<Destination, Place>,
    groups: Known<(String, bool, Destination), Arc<Group>>,
    helpers: Known<String, Arc<Declared>>,
    /// Which delay queues of a queue others have declared.
    tiers: Known<String, Arc<OnceCell<Vec<u32>>>>,
    /// Held while declaring: the second of two declarations at once is answered before the queue
    /// of the first takes messages (3.10).
    declaring: Mutex<()>,
    /// Until when a queue of this connection is new.
    new_until: std::sync::Mutex<Option<Instant>>,
}

type Known<K, V> = RwLock<HashMap<K, V>>;

/// Where messages to a destination go.
#[derive(Clone)]
pub(crate) enum Place {
    Topic(Arc<Topic>),
    Group(Arc<Group>),
}

pub(crate) struct Topic {
    destination: Destination,
    pub(crate) exchange: ShortString,
    declared: Declared,
}

/// What must exist before a message can be sent.
pub(crate) struct Needs {
    pub(crate) place: Place,
    pub(crate) helper: Option<Helper>,
}

/// A queue beside one of a group's own, made when it is first needed.
#[derive(Clone)]
pub(crate) enum Helper {
    /// Gives messages to `target` after 2^`power` seconds.
    Tier { target: String, power: u32 },
    /// See [`Runs`](crate::runs::Runs).
    Runs { queue: String },
}

impl Helper {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Tier { target, power } => tier(target, *power),
            Self::Runs { queue } => runs(queue),
        }
    }

    /// How long a message spends there.
    pub(crate) fn holds(&self) -> Duration {
        match self {
            Self::Tier { power, .. } => {
                Duration::from_secs(1_u64.checked_shl(*power).unwrap_or(u64::MAX))
            }
            Self::Runs { .. } => Duration::ZERO,
        }
    }

    fn shape(&self) -> Shape<'_> {
        match self {
            Self::Tier { target, power } => Shape::Tier { target, power: *power },
            Self::Runs { .. } => Shape::Runs,
        }
    }
}

/// What a queue is for.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Work { ordered: bool },
    DeadLetters,
    Tier { target: &'a str, power: u32 },
    Runs,
}

impl Topology {
    pub(crate) fn new(settings: Arc<Settings>, link: Link) -> Self {
        Self {
            questions: Arc::new(Questions::new(Arc::clone(&settings))),
            settings,
            link,
            forgotten: AtomicU64::new(0),
            destinations: RwLock::default(),
            groups: RwLock::default(),
            helpers: RwLock::default(),
            tiers: RwLock::default(),
            declaring: Mutex::default(),
            new_until: std::sync::Mutex::default(),
        }
    }

    fn prefix(&self) -> Option<&str> {
        self.settings.options.prefix.as_deref()
    }

    /// Where messages to a destination go.
    ///
    /// # Errors
    /// `Invalid` for its name.
    pub(crate) fn destination(&self, destination: &Destination) -> Result<Place> {
        known(&self.destinations, destination, || {
            if !destination.is_topic() {
                return Ok(Place::Group(Arc::new(Group::of_queue(destination, self.prefix())?)));
            }
            destination.validate()?;
            let exchange = short(&prefixed(self.prefix(), ".", destination, destination.name())?)?;
            let (destination, declared) = (destination.clone(), Declared::default());
            Ok(Place::Topic(Arc::new(Topic { destination, exchange, declared })))
        })
    }

    /// Where a group's messages are.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub(crate) fn group(&self, subscription: &Subscription) -> Result<Arc<Group>> {
        let group = Group::new(subscription, self.prefix())?;
        if !subscription.destination().is_topic()
            && let Place::Group(group) = self.destination(subscription.destination())?
        {
            return Ok(group);
        }
        let key = (group.stored.clone(), group.ordered, group.destination.clone());
        known(&self.groups, &key, || Ok(Arc::new(group)))
    }

    /// Forgets what was declared, so that it is restored when it is used next.
    pub(crate) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    /// Another number after each reconnect, and after each time that all was forgotten.
    fn epoch(&self) -> u64 {
        self.link.epoch() + self.forgotten.load(Ordering::Relaxed)
    }

    /// Whether it was declared since the last reconnect, or need not be.
    fn knows(&self, declared: &Declared) -> bool {
        self.settings.options.declare == Declare::Off
            || declared.epoch.load(Ordering::Relaxed) == self.epoch()
    }

    pub(crate) fn is_declared(&self, needs: &Needs) -> bool {
        self.knows(needs.place.declared())
            && needs.helper.as_ref().is_none_or(|helper| {
                let helpers = self.helpers.read().unwrap_or_else(PoisonError::into_inner);
                self.settings.options.declare == Declare::Off
                    || helpers.get(&helper.name()).is_some_and(|helper| self.knows(helper))
            })
    }

    /// Makes sure that it exists, as the `declare` option says.
    ///
    /// # Cancel safety
    /// The declaration goes on when the future is dropped, and whoever needs it next waits for the
    /// same: a publisher's deadline may be shorter than a declaration.
    pub(crate) async fn ensure(self: &Arc<Self>, needs: &Needs) -> Result<()> {
        self.ensure_place(&needs.place).await?;
        let Some(helper) = &needs.helper else { return Ok(()) };
        let declared = known(&self.helpers, &helper.name(), || Ok(Arc::default()))?;
        if self.knows(&declared) {
            return Ok(());
        }
        let work = || {
            let (topology, declared) = (Arc::clone(self), Arc::clone(&declared));
            let helper = helper.clone();
            async move {
                let _lock = topology.declaring.lock().await;
                let epoch = topology.epoch();
                topology.declare_queue(&helper.name(), helper.shape()).await?;
                declared.epoch.store(epoch, Ordering::Relaxed);
                Ok(())
            }
        };
        declared.under_way.run(work).await
    }

    /// As [`ensure`](Self::ensure).
    pub(crate) async fn ensure_place(self: &Arc<Self>, place: &Place) -> Result<()> {
        if self.knows(place.declared()) {
            return Ok(());
        }
        let work = || {
            let (topology, place) = (Arc::clone(self), place.clone());
            async move {
                let _lock = topology.declaring.lock().await;
                topology.declare(&place).await
            }
        };
        place.declared().under_way.run(work).await
    }

    async fn declare(&self, place: &Place) -> Result<()> {
        let epoch = self.epoch();
        if self.knows(place.declared()) {
            return Ok(());
        }
        match place {
            Place::Topic(topic) => self.declare_topic(topic).await?,
            Place::Group(group) => self.declare_group(group).await?,
        }
        place.declared().epoch.store(epoch, Ordering::Relaxed);
        Ok(())
    }

    async fn declare_topic(&self, topic: &Topic) -> Result<()> {
        let Topic { destination, exchange, .. } = topic;
        let name = exchange.as_str();
        // Each queue has a dead-letter queue, those with partitions too.
        if !destination.is_native() && self.count(&format!("{name}--dlq")).await?.is_some() {
            return Err(both(name, "topic", "queue"));
        }
        let was_there = self.agree(destination, name).await?;
        let is_made_again = was_there
            && self.settings.options.declare == Declare::Create
            && !self.is_exchange(name).await?;
        let kind = self.exchange_kind(destination);
        let options = ExchangeDeclareOptions {
            durable: true,
            passive: self.settings.options.declare == Declare::Verify,
            ..ExchangeDeclareOptions::default()
        };
        let (exchange, what) = (exchange.clone(), format!("topic {name:?}"));
        let declare = async move |channel: Channel| {
            let table = FieldTable::default();
            let declared = channel.exchange_declare(exchange, kind, options, table).await;
            declared.map_err(|error| failed("declare", &what, error))
        };
        self.questions.ask(&self.link, "declare", declare).await?;
        if is_made_again {
            tracing::warn!(topic = name, "the exchange was deleted; its groups are bound again");
            self.bind_groups_again(destination, name).await?;
        }
        Ok(())
    }

    async fn declare_group(&self, group: &Group) -> Result<()> {
        let topic = group.destination.is_topic();
        if topic {
            let topic = self.destination(&group.destination)?;
            Box::pin(self.declare(&topic)).await?;
        } else if !group.destination.is_native() && self.is_exchange(&group.stored).await? {
            return Err(both(&group.stored, "queue", "topic"));
        } else {
            self.agree(&group.destination, &group.stored).await?;
        }
        let (work, dead_letters) = (Shape::Work { ordered: group.ordered }, group.dead_letters());
        let queues = group.queues.iter().map(|queue| (queue.as_str(), work));
        let queues = queues.chain([(dead_letters.as_str(), Shape::DeadLetters)]).map(Ok);
        // Several at once: where the broker is far away, each takes four times the way there and back.
        let declare = |(queue, shape)| self.declare_queue(queue, shape);
        stream::iter(queues).try_for_each_concurrent(AT_ONCE, declare).await?;
        // Bound last: no message comes that could not be dead-lettered.
        if topic && self.settings.options.declare == Declare::Create {
            // RabbitMQ 4 may not see for a moment, on another channel, the exchange just declared.
            let mut attempt = 0;
            while let Err(error) = self.bind(group).await {
                if error.kind() != ErrorKind::NotFound || attempt == 10 {
                    return Err(error);
                }
                attempt += 1;
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn bind(&self, group: &Group) -> Result<()> {
        let exchange = prefixed(self.prefix(), ".", &group.destination, group.destination.name())?;
        let key = (group.destination.name().to_owned(), group.name.clone());
        let all = [match self.exchange_kind(&group.destination) {
            ExchangeKind::Headers => Binding::all_headers([]),
            _ => Binding::key("#"),
        }];
        let bindings = match self.settings.bindings.get(&key) {
            Some(bindings) => bindings.as_slice(),
            None if self.exchange_kind(&group.destination) == ExchangeKind::Direct => {
                let text = format!(
                    "group {:?} of the direct exchange {exchange:?} matches nothing: say what with .bind(..)",
                    group.name
                );
                return Err(error_of(ErrorKind::Config, "declare", text));
            }
            None => &all,
        };
        let mut exchanges = vec![exchange.clone()];
        if !group.destination.is_native() {
            exchanges.push(shape_of(&exchange));
        }
        let channel = self.link.channel("declare").await?;
        for exchange in exchanges {
            for Binding { routing_key, arguments } in bindings {
                let (queue, source) = (short(&group.stored)?, short(&exchange)?);
                let (key, options) = (short(routing_key)?, QueueBindOptions::default());
                let bound = channel.queue_bind(queue, source, key, options, arguments.clone());
                let what = format!("binding of {:?} to {exchange:?}", group.stored);
                let bound = bound.map_err(|error| failed("declare", &what, error));
                while_open("declare", &channel, bound).await?;
            }
        }
        Ok(())
    }

    pub(crate) fn exchange_kind(&self, topic: &Destination) -> ExchangeKind {
        self.settings.exchanges.get(topic.name()).cloned().unwrap_or(ExchangeKind::Topic)
    }

    async fn declare_queue(&self, name: &str, shape: Shape<'_>) -> Result<()> {
        let options = QueueDeclareOptions {
            durable: true,
            passive: self.settings.options.declare == Declare::Verify,
            ..QueueDeclareOptions::default()
        };
        let is_new = !options.passive && self.count(name).await?.is_none();
        let (queue, table, what) = (short(name)?, arguments(shape), format!("queue {name:?}"));
        let declare = async move |channel: Channel| {
            let declared = channel.queue_declare(queue, options, table).await;
            declared.map_err(|error| failed("declare", &what, error))
        };
        self.questions.ask(&self.link, "declare", declare).await?;
        if is_new {
            *self.new_until.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + NEW);
        }
        Ok(())
    }

    /// Which delay queues of a queue there are, for a connection that declares none. It looks once.
    pub(crate) async fn tiers(&self, queue: &str) -> Result<Vec<u32>> {
        let tiers = known(&self.tiers, &queue.to_owned(), || Ok(Arc::default()))?;
        let look = async || {
            let mut found = Vec::new();
            for power in 0..=LAST_TIER {
                if self.count(&tier(queue, power)).await?.is_some() {
                    found.push(power);
                }
            }
            if found.is_empty() {
                let shortest = tier(queue, 0);
                tracing::warn!(
                    queue,
                    "there are no delay queues ({shortest} and so on); longer waits are kept in the process"
                );
            }
            Ok(found)
        };
        tiers.get_or_try_init(look).await.cloned()
    }

    /// Resolves when the queues that this connection has made so far outlive a killed server.
    pub(crate) async fn outlives_a_kill(&self) {
        if let Some(until) = self.new_until() {
            sleep_until(until).await;
        }
    }

    /// Until when a queue that this connection has made would not outlive a killed server.
    pub(crate) fn new_until(&self) -> Option<Instant> {
        let until = *self.new_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    /// How many messages are ready in a queue; `None` if there is no such queue.
    pub(crate) async fn count(&self, queue: &str) -> Result<Option<u64>> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let (name, what) = (short(queue)?, format!("queue {queue:?}"));
        let count = async move |channel: Channel| match channel
            .queue_declare(name, options, FieldTable::default())
            .await
        {
            Ok(queue) => Ok(Some(u64::from(queue.message_count()))),
            Err(error) => absent(failed("count", &what, error)),
        };
        self.questions.ask(&self.link, "count", count).await
    }

    pub(crate) async fn is_exchange(&self, name: &str) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let (exchange, what) = (short(name)?, format!("exchange {name:?}"));
        let look = async move |channel: Channel| {
            let (kind, table) = (ExchangeKind::Topic, FieldTable::default());
            match channel.exchange_declare(exchange, kind, options, table).await {
                Ok(()) => Ok(true),
                Err(error) => Ok(absent::<()>(failed("declare", &what, error))?.is_some()),
            }
        };
        self.questions.ask(&self.link, "declare", look).await
    }
}

/// What is known under the key, made at first.
fn known<K: Clone + Eq + Hash, V: Clone>(
    known: &Known<K, V>,
    key: &K,
    make: impl FnOnce() -> Result<V>,
) -> Result<V> {
    if let Some(value) = known.read().unwrap_or_else(PoisonError::into_inner).get(key) {
        return Ok(value.clone());
    }
    let value = make()?;
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    Ok(known.entry(key.clone()).or_insert(value).clone())
}

impl Place {
    fn declared(&self) -> &Declared {
        match self {
            Self::Topic(topic) => &topic.declared,
            Self::Group(group) => &group.declared,
        }
    }
}

fn absent<T>(error: anybroker_core::Error) -> Result<Option<T>> {
    if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

fn both(name: &str, asked: &str, found: &str) -> anybroker_core::Error {
    let text = format!(
        "{name:?} is declared as a {asked} here, and is a {found} already: a name is one or the other"
    );
    error_of(ErrorKind::Mismatch, "declare", text)
}

fn arguments(shape: Shape<'_>) -> FieldTable {
    let mut table = FieldTable::default();
    let mut set = |name: &str, value| {
        table.insert(name.into(), value);
    };
    set("x-queue-type", text("quorum"));
    // Without a limit of its own, RabbitMQ 4 drops a message that came back 20 times. No limit is
    // -1 there, which loses every message at its first return on 3.10: only a large number is safe.
    set("x-delivery-limit", AMQPValue::LongInt(i32::MAX));
    match shape {
        Shape::DeadLetters | Shape::Work { ordered: false } => {}
        // Each message takes the place of the one before.
        Shape::Runs => set("x-max-length", AMQPValue::LongInt(1)),
        Shape::Work { ordered: true } => set("x-single-active-consumer", AMQPValue::Boolean(true)),
        Shape::Tier { target, power } => {
            set("x-message-ttl", AMQPValue::LongLongInt(1000 << power));
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(target));
            // The default strategy loses messages.
            set("x-dead-letter-strategy", text("at-least-once"));
            set("x-overflow", text("reject-publish"));
        }
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A name as AMQP carries it, at most 255 bytes.
pub(crate) fn short(text: &str) -> Result<ShortString> {
    ShortString::try_new(text).map_err(|_| {
        invalid(format!("a name has {} bytes; RabbitMQ takes 255: {text:.40}…", text.len()))
    })
}
