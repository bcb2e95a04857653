use std::fs;
use std::io;
use std::sync::Arc;

use anybroker_core::{
    Broker, BrokerUrl, Capabilities, Consumer, DeadLetter, DeadLetterFilter, Declare, Depth,
    Destination, ErrorKind, Hop, Peek, Producer, Redrive, Result, Subscription, now,
};
use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::consumer::{FolderConsumer, FolderSettler, Unseen};
use crate::error::{error, failed};
use crate::files::{Files, Group, list, read, sync};
use crate::keeper::Keeper;
use crate::name::{Name, millis, nanos};
use crate::{LONGEST_LEASE, MAX_PAYLOAD};

/// A folder as a broker: see the crate's documentation.
#[derive(Debug)]
pub struct FolderBroker {
    connection: Arc<Connection>,
    capabilities: Capabilities,
}

/// Opens the folder that a `folder:///path` URL names.
///
/// # Errors
/// [`Config`](ErrorKind::Config) for a URL or option that is not understood, [`Denied`](
/// ErrorKind::Denied) or [`Unavailable`](ErrorKind::Unavailable) where the folder cannot be used.
pub async fn connect(mut url: BrokerUrl) -> Result<Arc<FolderBroker>> {
    if url.scheme() != "folder" || url.hosts(0).is_ok() || url.path().is_empty() {
        let text = "a folder's URL is folder:///path, and then its options";
        return Err(error(ErrorKind::Config, text).operation("connect"));
    }
    let may_create = url.declare()? == Declare::Create;
    let longest_lease = url.duration("longest-lease")?.unwrap_or(LONGEST_LEASE);
    url.finish(&["declare", "longest-lease"])?;
    let root = format!("/{}", url.path()).into();
    let opened = tokio::task::spawn_blocking(move || Files::open(root, may_create)).await;
    let files = opened.unwrap_or_else(|_| Err(error(ErrorKind::Broker, "a task panicked")));
    let files = files.map_err(|error| error.operation("connect"))?;
    let mut capabilities = Capabilities::new("folder", MAX_PAYLOAD);
    capabilities.leased = true;
    capabilities.start_earliest = false;
    let connection = Connection::open(files, longest_lease);
    Ok(Arc::new(FolderBroker { connection, capabilities }))
}

impl FolderBroker {
    /// Does something with the files of a group that is there, while nobody else changes them.
    async fn with_group<T: Send + 'static>(
        &self,
        subscription: &Subscription,
        work: impl FnOnce(&Files, &Group) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let subscription = subscription.clone();
        let done = self.connection.with_files(move |files| {
            let group = files.find(&subscription)?;
            let _lock = group.lock().map_err(failed)?;
            work(files, &group).map_err(failed)
        });
        done.await
    }
}

#[async_trait]
impl Broker for FolderBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        self.connection.clone()
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        let destination = destination.clone();
        let work = move |files: &Files| files.declare_destination(&destination).map(drop);
        self.connection.with_files(work).await.map_err(|error| error.operation("declare"))
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        let subscription = subscription.clone();
        let work = move |files: &Files| files.declare(&subscription).map(drop);
        self.connection.with_files(work).await.map_err(|error| error.operation("declare"))
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        let (connection, declared) = (Arc::clone(&self.connection), subscription.clone());
        let group = connection.with_files(move |files| files.declare(&declared)).await;
        let group = group.map_err(|error| error.operation("consume"))?;
        let lease = subscription.lease_time().min(connection.longest_lease);
        let (jobs, received) = mpsc::unbounded_channel();
        let files = Arc::clone(&connection.files);
        let keeper = Keeper::new(files, group, subscription.clone(), prefetch, lease);
        tokio::spawn(keeper.run(received, connection.closing()));
        let settler = Arc::new(FolderSettler(jobs));
        let rest = Unseen::default();
        Ok(Box::new(FolderConsumer { settler, lease, asked: None, rest, _connection: connection }))
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        let counted = self.with_group(subscription, |_, group| {
            let (messages, dead) = (list(&group.messages)?, list(&group.dead)?);
            let (now, count) = (now(), |found: usize| u64::try_from(found).ok());
            let is_ready = |name: &&Name| name.due <= millis(now);
            let in_flight = messages.iter().filter(|name| !is_ready(name) && name.held).count();
            let ready = messages.iter().filter(is_ready).count();
            let oldest = messages.iter().find(is_ready);
            let mut depth = Depth::default();
            depth.ready = count(ready);
            depth.in_flight = count(in_flight);
            depth.delayed = count(messages.len() - ready - in_flight);
            depth.dead_lettered = count(dead.len());
            depth.oldest = oldest
                .map(|name| std::time::Duration::from_nanos(nanos(now).saturating_sub(name.at)));
            Ok(depth)
        });
        counted.await.map_err(|error| error.operation("depth"))
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        let filter = filter.clone();
        let found = self.with_group(subscription, move |_, group| {
            let mut peek = Peek { entries: Vec::new(), complete: true };
            for name in list(&group.dead)? {
                let (envelope, hop) = read(&group.dead, &name, "")?;
                if !filter.matches(&envelope, &hop, now()) {
                    continue;
                }
                if peek.entries.len() == limit {
                    peek.complete = false;
                    break;
                }
                peek.entries.push(DeadLetter { envelope: Arc::new(envelope), hop });
            }
            Ok(peek)
        });
        found.await.map_err(|error| error.operation("dead letters"))
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        // What is given up again meanwhile is not among them.
        let names = self.with_group(subscription, |_, group| list(&group.dead)).await;
        let mut sent = 0;
        for name in names.map_err(|error| error.operation("redrive"))? {
            if sent == redrive.at_most() {
                break;
            }
            let filter = redrive.selected().clone();
            let moved = self.with_group(subscription, move |files, group| {
                send_back(files, group, &name, &filter)
            });
            if moved.await.map_err(|error| error.operation("redrive"))? {
                sent += 1;
                sleep(redrive.interval().unwrap_or_default()).await;
            }
        }
        Ok(sent)
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let purged = self.with_group(subscription, |_, group| {
            let names = list(&group.dead)?;
            for name in &names {
                fs::remove_file(group.dead.join(name.to_string()))?;
            }
            sync(&group.dead)?;
            Ok(u64::try_from(names.len()).unwrap_or(u64::MAX))
        });
        purged.await.map_err(|error| error.operation("purge"))
    }

    async fn health(&self) -> Result<()> {
        self.connection.with_files(Files::health).await.map_err(|error| error.operation("health"))
    }

    async fn close(&self) -> Result<()> {
        self.connection.close().await;
        Ok(())
    }
}

/// Sends a dead letter back, unless somebody else did: the new copy is durable before the old one
/// goes.
fn send_back(
    files: &Files,
    group: &Group,
    name: &Name,
    filter: &DeadLetterFilter,
) -> io::Result<bool> {
    let old = group.dead.join(name.to_string());
    if !old.exists() {
        return Ok(false);
    }
    let (envelope, hop) = read(&group.dead, name, "")?;
    if !filter.matches(&envelope, &hop, now()) {
        return Ok(false);
    }
    let hop = Hop::redrive();
    let copy = group.messages.join(files.name(&envelope, &hop).to_string());
    fs::rename(files.write(&envelope, &hop)?, copy)?;
    sync(&group.messages)?;
    fs::remove_file(old)?;
    sync(&group.dead)?;
    Ok(true)
}
