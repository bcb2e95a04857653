use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use anybroker_core::{Declare, Destination, ErrorKind, Result};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use crate::error::{error_of, failed};
use crate::group::{Group, invalid, prefixed, tier};
use crate::link::Link;
use crate::options::{Binding, Settings};

/// Declares what is stored, once for each epoch.
pub(crate) struct Topology {
    pub(crate) settings: Arc<Settings>,
    pub(crate) link: Link,
    /// What was declared, and in which epoch.
    declared: RwLock<(u64, HashSet<Needs>)>,
}

/// What must exist before a message can be sent or received.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Needs {
    /// Nothing that is not there already.
    Nothing,
    Destination(Destination),
    Group(Arc<Group>),
    /// The group, and a queue that gives messages to this one of it after 2^n seconds.
    Tier(Arc<Group>, String, u32),
}

/// What a queue is for.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Work { ordered: bool },
    DeadLetters,
    Tier { target: &'a str, power: u32 },
}

impl Topology {
    pub(crate) fn new(settings: Arc<Settings>, link: Link) -> Self {
        Self { settings, link, declared: RwLock::default() }
    }

    pub(crate) fn prefix(&self) -> Option<&str> {
        self.settings.prefix.as_deref()
    }

    /// Forgets what was declared, so that it is restored when it is used next.
    pub(crate) fn forget(&self) {
        self.declared.write().unwrap_or_else(PoisonError::into_inner).1.clear();
    }

    pub(crate) fn is_declared(&self, needs: &Needs) -> bool {
        if *needs == Needs::Nothing || self.settings.declare == Declare::Off {
            return true;
        }
        let declared = self.declared.read().unwrap_or_else(PoisonError::into_inner);
        declared.0 == self.link.epoch() && declared.1.contains(needs)
    }

    /// Makes sure that it exists, as the `declare` option says.
    pub(crate) async fn ensure(&self, needs: &Needs) -> Result<()> {
        if self.is_declared(needs) {
            return Ok(());
        }
        let epoch = self.link.epoch();
        match needs {
            Needs::Nothing => {}
            Needs::Destination(destination) if destination.is_topic() => {
                self.topic(destination).await?;
            }
            Needs::Destination(queue) => {
                self.group(&Group::of_queue(queue, self.prefix())?).await?;
            }
            Needs::Group(group) => self.group(group).await?,
            Needs::Tier(group, target, power) => {
                Box::pin(self.ensure(&Needs::Group(Arc::clone(group)))).await?;
                self.queue(&tier(target, *power), Shape::Tier { target, power: *power }).await?;
            }
        }
        let mut declared = self.declared.write().unwrap_or_else(PoisonError::into_inner);
        if declared.0 != epoch {
            *declared = (epoch, HashSet::new());
        }
        declared.1.insert(needs.clone());
        Ok(())
    }

    async fn topic(&self, topic: &Destination) -> Result<()> {
        topic.validate()?;
        let name = prefixed(topic, self.prefix(), topic.name());
        // Each queue has a dead-letter queue, those with partitions too.
        if !topic.is_native() && self.count(&format!("{name}--dlq")).await?.is_some() {
            return Err(both(&name, "topic", "queue"));
        }
        let kind = self.exchange_kind(topic);
        let options = ExchangeDeclareOptions {
            durable: true,
            passive: self.settings.declare == Declare::Verify,
            ..ExchangeDeclareOptions::default()
        };
        let channel = self.link.channel("declare").await?;
        channel
            .exchange_declare(short(&name)?, kind, options, FieldTable::default())
            .await
            .map_err(|error| failed("declare", &format!("topic {name:?}"), error))
    }

    async fn group(&self, group: &Group) -> Result<()> {
        let topic = group.destination.is_topic();
        if topic {
            Box::pin(self.ensure(&Needs::Destination(group.destination.clone()))).await?;
        } else if !group.destination.is_native() && self.is_exchange(&group.stored).await? {
            return Err(both(&group.stored, "queue", "topic"));
        }
        for queue in group.queues() {
            self.queue(&queue, Shape::Work { ordered: group.ordered }).await?;
        }
        self.queue(&group.dead_letters(), Shape::DeadLetters).await?;
        // Bound last: what was published before went to none of its queues, and what is published
        // from here on finds all of them.
        if topic && self.settings.declare == Declare::Create {
            self.bind(group).await?;
        }
        Ok(())
    }

    async fn bind(&self, group: &Group) -> Result<()> {
        let exchange = prefixed(&group.destination, self.prefix(), group.destination.name());
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
        let channel = self.link.channel("declare").await?;
        for Binding { routing_key, arguments } in bindings {
            channel
                .queue_bind(
                    short(&group.stored)?,
                    short(&exchange)?,
                    short(routing_key)?,
                    QueueBindOptions::default(),
                    arguments.clone(),
                )
                .await
                .map_err(|error| {
                    failed("declare", &format!("binding of {:?} to {exchange:?}", group.stored), error)
                })?;
        }
        Ok(())
    }

    fn exchange_kind(&self, topic: &Destination) -> ExchangeKind {
        self.settings.exchanges.get(topic.name()).cloned().unwrap_or(ExchangeKind::Topic)
    }

    async fn queue(&self, name: &str, shape: Shape<'_>) -> Result<()> {
        let options = QueueDeclareOptions {
            durable: true,
            passive: self.settings.declare == Declare::Verify,
            ..QueueDeclareOptions::default()
        };
        // A mismatch closes the channel, so each declaration has its own.
        let channel = self.link.channel("declare").await?;
        let declared = channel.queue_declare(short(name)?, options, arguments(shape)).await;
        declared.map(drop).map_err(|error| failed("declare", &format!("queue {name:?}"), error))
    }

    /// How many messages are ready in a queue; `None` if there is no such queue.
    pub(crate) async fn count(&self, queue: &str) -> Result<Option<u64>> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.link.channel("count").await?;
        match channel.queue_declare(short(queue)?, options, FieldTable::default()).await {
            Ok(queue) => Ok(Some(u64::from(queue.message_count()))),
            Err(error) => absent(failed("count", &format!("queue {queue:?}"), error)),
        }
    }

    async fn is_exchange(&self, name: &str) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let channel: Channel = self.link.channel("declare").await?;
        let found = channel
            .exchange_declare(short(name)?, ExchangeKind::Topic, options, FieldTable::default())
            .await;
        match found {
            Ok(()) => Ok(true),
            Err(error) => Ok(absent::<()>(failed("declare", name, error))?.is_some()),
        }
    }
}

fn absent<T>(error: anybroker_core::Error) -> Result<Option<T>> {
    if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

fn both(name: &str, asked: &str, found: &str) -> anybroker_core::Error {
    let text = format!("{name:?} is declared as a {asked} here, and is a {found} already: a name is one or the other");
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
