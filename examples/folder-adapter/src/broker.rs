use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anybroker_core::adapter::Background;
use anybroker_core::{
    Broker, BrokerUrl, Capabilities, Confirmation, Consumer, DeadLetter, DeadLetterFilter, Declare,
    Depth, Destination, ErrorKind, Hop, Outgoing, Peek, Producer, Redrive, Result, Subscription,
    now,
};
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use crate::consumer::{FolderConsumer, FolderSettler, Unseen};
use crate::folder::{Folder, failed, refused, unsure};
use crate::name::{DEAD, FREE, HELD, Name, nanos};

/// A folder as a broker: see the crate's documentation.
///
/// All that it does with files it does in one task, in the order of the calls.
#[derive(Clone, Debug)]
pub struct FolderBroker {
    pub(crate) folder: Arc<Folder>,
    jobs: mpsc::UnboundedSender<Job>,
}

type Job = Box<dyn FnOnce(&Folder) + Send>;

/// So that what a killed process held comes back soon.
const LONGEST_LEASE: Duration = Duration::from_secs(10);

/// Opens the folder that a `folder:///path` URL names.
///
/// # Errors
/// [`Config`](ErrorKind::Config) for a URL or option that is not understood.
pub async fn connect(mut url: BrokerUrl) -> Result<Arc<FolderBroker>> {
    if url.scheme() != "folder" || url.hosts(1).is_ok() || url.path().is_empty() {
        let text = "a folder's URL is folder:///path, and then its options";
        return Err(failed("connect", refused(ErrorKind::Config, text)));
    }
    let may_create = url.declare()?.unwrap_or_default() == Declare::Create;
    url.finish()?;
    let folder = Arc::new(Folder::new(format!("/{}", url.path()).into(), may_create));
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    let of_task = Arc::clone(&folder);
    // In the background: a handler that blocks the application's only thread must not hold up what
    // renews the leases of others.
    Background::spawn(async move {
        while let Some(job) = queue.recv().await {
            let folder = Arc::clone(&of_task);
            // A job that panics drops the sender of its answer.
            let _ = spawn_blocking(move || job(&folder)).await;
        }
    });
    let broker = FolderBroker { folder, jobs };
    broker.in_turn("connect", |folder| folder.make(&folder.root, "folder")).await?;
    Ok(Arc::new(broker))
}

impl FolderBroker {
    /// Does something after all that was asked for before, whether or not it is polled.
    pub(crate) fn in_turn<T, W>(
        &self,
        operation: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T>> + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        // The task that receives lives as long as this sender.
        let _ = self.jobs.send(Box::new(move |folder| drop(answer.send(work(folder)))));
        async move {
            let ended =
                |_| Err(unsure(refused(ErrorKind::Closed, "the runtime ended, or it panicked")));
            answered.await.unwrap_or_else(ended).map_err(|error| failed(operation, error))
        }
    }
}

impl Producer for FolderBroker {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        Confirmation::run(self.in_turn("publish", move |folder| folder.publish(&outgoing)))
    }
}

#[async_trait]
impl Broker for FolderBroker {
    fn capabilities(&self) -> &Capabilities {
        &self.folder.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::new(self.clone())
    }

    async fn declare_destination(&self, destination: &Destination) -> Result<()> {
        let destination = destination.clone();
        let declare = move |folder: &Folder| folder.declare_destination(&destination).map(drop);
        self.in_turn("declare", declare).await
    }

    async fn declare(&self, subscription: &Subscription) -> Result<()> {
        let subscription = subscription.clone();
        let declare = move |folder: &Folder| folder.declare(&subscription).map(drop);
        self.in_turn("declare", declare).await
    }

    async fn consume(
        &self,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>> {
        let subscription = Arc::new(subscription.clone());
        let declared = Arc::clone(&subscription);
        self.in_turn("consume", move |folder| folder.declare(&declared)).await?;
        let (broker, prefetch) = (self.clone(), Arc::new(AtomicUsize::new(prefetch.max(1))));
        let lease = subscription.lease_time().min(LONGEST_LEASE);
        let settler = FolderSettler { broker, subscription, prefetch, lease };
        let (receiving, rest) = (JoinSet::new(), Unseen::default());
        Ok(Box::new(FolderConsumer { settler, receiving, rest }))
    }

    async fn depth(&self, subscription: &Subscription) -> Result<Depth> {
        let subscription = subscription.clone();
        let count = move |folder: &Folder| {
            let (group, now) = (folder.find(&subscription)?, nanos(now()));
            let count =
                |is: &dyn Fn(&Name) -> bool| group.list(is).map(|names| Some(names.len() as u64));
            let mut depth = Depth::default();
            depth.ready = count(&|name| name.state != DEAD && name.due <= now)?;
            depth.in_flight = count(&|name| name.state == HELD && name.due > now)?;
            depth.delayed = count(&|name| name.state == FREE && name.due > now)?;
            depth.dead_lettered = count(&|name| name.state == DEAD)?;
            Ok(depth)
        };
        self.in_turn("depth", count).await
    }

    async fn dead_letters(
        &self,
        subscription: &Subscription,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<Peek> {
        let (subscription, filter) = (subscription.clone(), filter.clone());
        let peek = move |folder: &Folder| {
            let group = folder.find(&subscription)?;
            let mut entries = Vec::new();
            for name in group.list(|name| name.state == DEAD)? {
                let (envelope, hop) = group.read(name, "")?;
                let hop = *hop.unwrap_or_default();
                if filter.matches(&envelope, &hop, now()) {
                    entries.push(DeadLetter { envelope: Arc::new(envelope), hop });
                }
            }
            let complete = entries.len() <= limit;
            entries.truncate(limit);
            Ok(Peek { entries, complete })
        };
        self.in_turn("dead letters", peek).await
    }

    async fn redrive(&self, subscription: &Subscription, redrive: &Redrive) -> Result<u64> {
        // What is given up again meanwhile has a later name.
        let (begun, mut sent) = (self.folder.later(), 0);
        while sent < redrive.at_most() {
            let (subscription, filter) = (subscription.clone(), redrive.selected().clone());
            let send_next = move |folder: &Folder| {
                let group = folder.find(&subscription)?;
                for name in group.list(|name| name.state == DEAD && name.at < begun)? {
                    let (envelope, hop) = group.read(name, "")?;
                    let hop = *hop.unwrap_or_default();
                    if filter.matches(&envelope, &hop, now()) {
                        let hop = Hop::redrive();
                        group.store(folder.name(&envelope, &hop), &envelope, &hop)?;
                        return group.remove(name).map(|()| true);
                    }
                }
                Ok(false)
            };
            if !self.in_turn("redrive", send_next).await? {
                break;
            }
            sent += 1;
            sleep(redrive.interval().unwrap_or_default()).await;
        }
        Ok(sent)
    }

    async fn purge_dead_letters(&self, subscription: &Subscription) -> Result<u64> {
        let subscription = subscription.clone();
        let purge = move |folder: &Folder| {
            let group = folder.find(&subscription)?;
            let names = group.list(|name| name.state == DEAD)?;
            names.iter().try_for_each(|name| group.remove(*name))?;
            Ok(names.len() as u64)
        };
        self.in_turn("purge", purge).await
    }

    async fn health(&self) -> Result<()> {
        self.in_turn("health", Folder::check).await
    }

    async fn close(&self) -> Result<()> {
        let close = |folder: &Folder| {
            for held in std::mem::take(&mut *folder.held()).into_values() {
                // What cannot be given back comes back when its lease ends.
                let _ = folder.free(held);
            }
            folder.closed.store(true, Ordering::Release);
            Ok(())
        };
        self.in_turn("close", close).await
    }
}
