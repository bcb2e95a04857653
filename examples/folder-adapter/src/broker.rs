use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, BrokerUrl, Capabilities, Consumer, DeadLetter, DeadLetterFilter, Declare, Depth,
    Destination, ErrorKind, Hop, Peek, Producer, Redrive, Result, Subscription, now,
};
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::consumer::{FolderConsumer, FolderSettler, Unseen};
use crate::folder::{Folder, MAX_PAYLOAD, failed, list, lock, read, refused, remove};
use crate::name::{DEAD, FREE, HELD, Name, nanos};

/// A folder as a broker: see the crate's documentation.
#[derive(Debug)]
pub struct FolderBroker {
    connection: Connection,
    capabilities: Capabilities,
    longest_lease: Duration,
}

/// Opens the folder that a `folder:///path` URL names.
///
/// # Errors
/// [`Config`](ErrorKind::Config) for a URL or option that is not understood.
pub async fn connect(mut url: BrokerUrl) -> Result<Arc<FolderBroker>> {
    let invalid = |text| failed("connect", refused(ErrorKind::Config, text));
    if url.scheme() != "folder" || url.hosts(1).is_ok() || url.path().is_empty() {
        return Err(invalid("a folder's URL is folder:///path, and then its options"));
    }
    let (declare, lease) = (url.declare()?, url.duration("longest-lease")?);
    url.finish(&["declare", "longest-lease"])?;
    let folder = Folder::new(format!("/{}", url.path()).into(), declare == Declare::Create);
    let connection = Connection::open(folder);
    let open = |folder: &Folder| {
        if folder.may_create { fs::create_dir_all(&folder.root) } else { folder.check() }
    };
    connection.in_turn("connect", open).await?;
    let mut capabilities = Capabilities::new("folder", MAX_PAYLOAD);
    capabilities.leased = true;
    capabilities.start_earliest = false;
    let longest_lease = lease.unwrap_or(Duration::from_secs(10));
    Ok(Arc::new(FolderBroker { connection, capabilities, longest_lease }))
}

impl FolderBroker {
    /// Does something with the files of a group, while nobody else changes them.
    async fn with_group<T: Send + 'static>(
        &self,
        operation: &'static str,
        subscription: &Subscription,
        work: impl FnOnce(&Folder, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let subscription = subscription.clone();
        let work = move |folder: &Folder| {
            let group = folder.find(&subscription)?;
            let _lock = lock(&group)?;
            work(folder, &group)
        };
        self.connection.in_turn(operation, work).await
    }
}

#[async_trait]
impl Broker for FolderBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(self.connection.clone())
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        let destination = destination.clone();
        let declare = move |folder: &Folder| folder.declare_destination(&destination).map(drop);
        self.connection.in_turn("declare", declare).await
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        let subscription = subscription.clone();
        let declare = move |folder: &Folder| folder.declare(&subscription).map(drop);
        self.connection.in_turn("declare", declare).await
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        let (id, declared) = (self.connection.folder.later(), subscription.clone());
        let declare = move |folder: &Folder| folder.declare(&declared);
        let group = self.connection.in_turn("consume", declare).await?;
        let lease = subscription.lease_time().min(self.longest_lease);
        let (connection, subscription) = (self.connection.clone(), subscription.clone().into());
        let settler = FolderSettler { connection, id, group, subscription, prefetch, lease };
        let (receiving, rest) = (JoinSet::new(), Unseen::default());
        Ok(Box::new(FolderConsumer { settler, receiving, rest }))
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        let count = |_: &Folder, group: &Path| {
            let (names, now) = (list(group)?, nanos(now()));
            let count = |is: fn(&Name, u64) -> bool| {
                Some(names.iter().filter(|name| is(name, now)).count() as u64)
            };
            let mut depth = Depth::default();
            depth.ready = count(|name, now| name.state != DEAD && name.due <= now);
            depth.in_flight = count(|name, now| name.state == HELD && name.due > now);
            depth.delayed = count(|name, now| name.state == FREE && name.due > now);
            depth.dead_lettered = count(|name, _| name.state == DEAD);
            Ok(depth)
        };
        self.with_group("depth", subscription, count).await
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        let filter = filter.clone();
        let peek = move |_: &Folder, group: &Path| {
            let mut peek = Peek { entries: Vec::new(), complete: true };
            for name in dead(group)? {
                let (envelope, hop) = read(group, name, "")?;
                if filter.matches(&envelope, &hop, now()) {
                    peek.entries.push(DeadLetter { envelope: Arc::new(envelope), hop });
                }
            }
            peek.complete = peek.entries.len() <= limit;
            peek.entries.truncate(limit);
            Ok(peek)
        };
        self.with_group("dead letters", subscription, peek).await
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        // What is given up again meanwhile is not among them.
        let names = self.with_group("redrive", subscription, |_, group| dead(group)).await?;
        let mut sent = 0;
        for name in names {
            if sent == redrive.at_most() {
                break;
            }
            let filter = redrive.selected().clone();
            let back = move |folder: &Folder, group: &Path| send_back(folder, group, name, &filter);
            if self.with_group("redrive", subscription, back).await? {
                sent += 1;
                sleep(redrive.interval().unwrap_or_default()).await;
            }
        }
        Ok(sent)
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let purge = |_: &Folder, group: &Path| {
            let names = dead(group)?;
            names.iter().try_for_each(|name| remove(group, *name))?;
            Ok(names.len() as u64)
        };
        self.with_group("purge", subscription, purge).await
    }

    async fn health(&self) -> Result<()> {
        self.connection.in_turn("health", Folder::check).await
    }

    async fn close(&self) -> Result<()> {
        self.connection.close().await
    }
}

/// The dead letters of a group.
fn dead(group: &Path) -> io::Result<Vec<Name>> {
    Ok(list(group)?.into_iter().filter(|name| name.state == DEAD).collect())
}

/// Sends a dead letter back, unless somebody else did.
fn send_back(
    folder: &Folder,
    group: &Path,
    name: Name,
    filter: &DeadLetterFilter,
) -> io::Result<bool> {
    if !group.join(name.to_string()).exists() {
        return Ok(false);
    }
    let (envelope, hop) = read(group, name, "")?;
    let is_meant = filter.matches(&envelope, &hop, now());
    if is_meant {
        let hop = Hop::redrive();
        folder.store(group, folder.name(&envelope, &hop), &envelope, &hop)?;
        remove(group, name)?;
    }
    Ok(is_meant)
}
