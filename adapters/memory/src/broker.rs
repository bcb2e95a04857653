use std::fmt;
use std::sync::Arc;

use anybroker_core::{
    Broker, BrokerUrl, Capabilities, Consumer, DeadLetterFilter, Depth, Destination, Peek,
    Producer, Redrive, Result, Subscription, now,
};
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::config::{Config, MemoryBrokerBuilder};
use crate::connection::Connection;
use crate::consumer::MemoryConsumer;
use crate::destination::StoredDestination;
use crate::producer::MemoryProducer;
use crate::store::Store;

/// A broker in this process: see the crate's documentation.
///
/// Closing it ends only this connection; what its consumers were handed and had not settled is
/// given back, and counts as an attempt.
pub struct MemoryBroker {
    connection: Arc<Connection>,
    capabilities: Capabilities,
}

/// Connects to the broker that a `memory://` URL names.
///
/// # Errors
/// `Config` for a URL or option that is not understood.
pub async fn connect(url: BrokerUrl) -> Result<Arc<MemoryBroker>> {
    Ok(MemoryBrokerBuilder::from_url(url)?.build())
}

impl MemoryBroker {
    /// Sets options, and then makes a broker.
    pub fn builder() -> MemoryBrokerBuilder {
        MemoryBrokerBuilder::default()
    }

    pub(crate) fn open(store: Arc<Store>, config: Config) -> Arc<Self> {
        let mut capabilities = Capabilities::new("memory", config.max_payload);
        // No process outlives its messages.
        capabilities.one_consumer = false;
        capabilities.leased = true;
        // A topic keeps nothing that no group waits for.
        capabilities.start_earliest = false;
        Arc::new(Self { connection: Arc::new(Connection::new(store, config)), capabilities })
    }

    /// Declares a subscription; answers where its group stands.
    fn declared(&self, subscription: &Subscription) -> Result<(Arc<StoredDestination>, usize)> {
        self.capabilities.check(subscription)?;
        let destination = subscription.destination();
        let stored = self.connection.declare(destination)?;
        let group = stored.declare_group(subscription, &self.connection)?;
        Ok((stored, group))
    }

    /// Where the group of a subscription stands, whatever else the subscription says.
    fn find(&self, subscription: &Subscription) -> Result<(Arc<StoredDestination>, usize)> {
        self.connection.check_open()?;
        let stored = self.connection.store.find(subscription.destination())?;
        stored.check_kind(subscription.destination())?;
        let group = stored.find_group(subscription.group_name())?;
        Ok((stored, group))
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(MemoryProducer {
            connection: self.connection.clone(),
            capabilities: self.capabilities.clone(),
        })
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        let declared = self.connection.declare(destination);
        declared.map(drop).map_err(|error| error.broker("memory").operation("declare"))
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        let declared = self.declared(subscription);
        declared.map(drop).map_err(|error| error.broker("memory").operation("declare"))
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        let declared = self.declared(subscription);
        let (destination, group) =
            declared.map_err(|error| error.broker("memory").operation("consume"))?;
        let (connection, subscription) = (self.connection.clone(), subscription.clone());
        Ok(Box::new(MemoryConsumer::new(connection, destination, group, subscription, prefetch)))
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        let found = self.find(subscription).map_err(|error| error.operation("depth"));
        let (destination, group) = found?;
        Ok(destination.with(group, |group, signals| {
            let now = Instant::now();
            group.advance(now, signals);
            group.depth(now)
        }))
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        let found = self.find(subscription).map_err(|error| error.operation("dead letters"));
        let (destination, group) = found?;
        Ok(destination.with(group, |group, _| group.dead_letters.peek(filter, limit, now())))
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        let find = || self.find(subscription).map_err(|error| error.operation("redrive"));
        let (destination, group) = find()?;
        // What is given up again while a slow redrive runs is not sent back once more.
        let end = destination.with(group, |group, _| group.dead_letters.end());
        let mut sent = 0;
        loop {
            let rest = redrive.at_most() - sent;
            let limit = if redrive.interval().is_some() { rest.min(1) } else { rest };
            let count = destination.with(group, |group, signals| {
                group.redrive(redrive.selected(), limit, end, signals)
            });
            sent += count;
            match redrive.interval() {
                Some(interval) if count > 0 && sent < redrive.at_most() => sleep(interval).await,
                _ => return Ok(sent),
            }
            find()?;
        }
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let found = self.find(subscription).map_err(|error| error.operation("purge"));
        let (destination, group) = found?;
        let purged = destination.with(group, |group, _| group.dead_letters.clear());
        Ok(u64::try_from(purged.len()).unwrap_or(u64::MAX))
    }

    async fn health(&self) -> Result<()> {
        self.connection.check_open().map_err(|error| error.operation("health"))
    }

    async fn close(&self) -> Result<()> {
        self.connection.close();
        Ok(())
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}
