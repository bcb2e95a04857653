use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anybroker_core::adapter::{LONGEST_ALONE, suspicious};
use anybroker_core::{
    Confirmation, Consumer, Delivery, ErrorKind, Hop, Outcome, Result, Settler, Subscription, now,
};
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::broker::FolderBroker;
use crate::folder::{Folder, Held, refused};
use crate::name::{DEAD, FREE, HELD, Name, nanos};

/// How often a consumer that waits looks into its folder.
const INTERVAL: Duration = Duration::from_millis(20);

/// What has come back so often, or nearly to its limit, may have ended its process.
const SUSPICIOUS: u32 = 2;

/// Deliveries that no handler has seen: dropped, they are released, which is no attempt.
#[derive(Debug, Default)]
pub(crate) struct Unseen(Vec<Delivery>);

impl Drop for Unseen {
    fn drop(&mut self) {
        for delivery in self.0.drain(..) {
            drop(delivery.settle(Outcome::Release { after: Duration::ZERO }));
        }
    }
}

/// Takes a message only when it is asked for one: nobody would renew what waits here.
#[derive(Debug)]
pub(crate) struct FolderConsumer {
    pub(crate) settler: FolderSettler,
    /// At most one task, kept from poll to poll, so that nothing is lost with it.
    pub(crate) receiving: JoinSet<Result<Unseen>>,
    /// What came when less was asked for than before.
    pub(crate) rest: Unseen,
}

#[async_trait]
impl Consumer for FolderConsumer {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        if max == 0 {
            self.receiving = JoinSet::new();
            return Poll::Ready(Ok(()));
        }
        if self.rest.0.is_empty() {
            if self.receiving.is_empty() {
                self.receiving.spawn(self.settler.clone().receive(max));
            }
            if let Some(Ok(received)) = ready!(self.receiving.poll_join_next(cx)) {
                self.rest = received?;
            }
        }
        let count = self.rest.0.len().min(max);
        out.extend(self.rest.0.drain(..count));
        Poll::Ready(Ok(()))
    }

    fn set_prefetch(&mut self, prefetch: usize) {
        self.settler.prefetch.store(prefetch.max(1), Ordering::Relaxed);
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        Some((Arc::new(self.settler.clone()), self.settler.lease))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let broker = self.settler.broker.clone();
        drop(self);
        // Once for a take that was under way, and once for what it then gives back.
        broker.in_turn("close", |_| Ok(())).await?;
        broker.in_turn("close", |_| Ok(())).await
    }
}

/// Takes, renews and settles for one consumer.
#[derive(Clone, Debug)]
pub(crate) struct FolderSettler {
    pub(crate) broker: FolderBroker,
    pub(crate) subscription: Arc<Subscription>,
    /// Shared with a take that is under way.
    pub(crate) prefetch: Arc<AtomicUsize>,
    pub(crate) lease: Duration,
}

impl FolderSettler {
    async fn receive(self, max: usize) -> Result<Unseen> {
        loop {
            let settler = self.clone();
            let taken = self.broker.in_turn("receive", move |folder| settler.take(folder, max));
            match taken.await? {
                taken if taken.0.is_empty() => sleep(INTERVAL).await,
                taken => return Ok(taken),
            }
        }
    }

    /// Takes messages that are due. In an ordered group, a key's first one hides the others, be it
    /// held, delayed or free.
    ///
    /// A crash counts for all that was taken. So that a message which ends its process takes no
    /// neighbours along into the dead letters, one that has come back twice is taken alone, for a
    /// while.
    fn take(&self, folder: &Folder, max: usize) -> io::Result<Unseen> {
        let group = folder.find(&self.subscription)?;
        let is_mine = |held: &&Held| Arc::ptr_eq(&held.0, &self.subscription);
        let suspicious = suspicious(&self.subscription, SUSPICIOUS);
        // A tag tells when it was taken.
        let recent = nanos(now() - LONGEST_ALONE);
        let beside: Vec<_> = folder
            .held()
            .iter()
            .filter(|(tag, _)| **tag > recent)
            .map(|(_, (_, name))| *name)
            .collect();
        if beside.iter().any(|name| name.deliveries > suspicious) {
            return Ok(Unseen::default());
        }
        let prefetch = self.prefetch.load(Ordering::Relaxed);
        let room = prefetch.saturating_sub(folder.held().values().filter(is_mine).count());
        let (now, mut keys, mut taken) = (now(), HashSet::new(), Unseen::default());
        for name in group.list(|name| name.state != DEAD)? {
            let has_lane = self.subscription.is_ordered() && name.key != 0;
            let is_hidden = has_lane && !keys.insert(name.key);
            if is_hidden || name.due > nanos(now) || taken.0.len() == room.min(max) {
                continue;
            }
            let is_suspect = name.deliveries >= suspicious;
            if is_suspect && beside.len() + taken.0.len() > 0 {
                // Nothing more, or its turn would never come.
                break;
            }
            let (envelope, hop) = group.read(name, self.subscription.destination().name())?;
            let due = nanos(now + self.lease);
            let mine = Name { due, deliveries: name.deliveries + 1, state: HELD, ..name };
            group.rename(name, mine)?;
            let (tag, settler) = (folder.later(), Arc::new(self.clone()));
            folder.held().insert(tag, (Arc::clone(&self.subscription), mine));
            taken.0.push(Delivery::new(envelope.into(), hop, name.deliveries, tag, settler));
            if is_suspect {
                break;
            }
        }
        Ok(taken)
    }

    /// Stores the new copy, durably, and then removes the old one.
    fn finish(&self, folder: &Folder, delivery: &Delivery, outcome: &Outcome) -> io::Result<()> {
        let late = "its lease ran out or the broker was closed, and it was given back";
        let late = || refused(ErrorKind::StaleDelivery, late);
        let (_, name) = folder.held().remove(&delivery.tag()).ok_or_else(late)?;
        let group = folder.find(&self.subscription)?;
        if !group.has(name) {
            return Err(late());
        }
        let Some(hop) = Hop::after(delivery, outcome, &self.subscription) else {
            return group.remove(name);
        };
        let state = if hop.failure.is_some() { DEAD } else { FREE };
        // In its old place, where the order wants it.
        let due = hop.not_before.map_or(0, nanos);
        group.store(Name { due, deliveries: 0, state, ..name }, delivery.envelope(), &hop)?;
        group.remove(name)
    }

    fn extend(&self, folder: &Folder, tags: &[u64]) -> io::Result<()> {
        let group = folder.find(&self.subscription)?;
        let due = nanos(now() + self.lease);
        for tag in tags {
            let Some((subscription, name)) = folder.held().get(tag).cloned() else { continue };
            if group.has(name) {
                let renewed = Name { due, ..name };
                group.rename(name, renewed)?;
                folder.held().insert(*tag, (subscription, renewed));
            } else {
                folder.held().remove(tag);
            }
        }
        Ok(())
    }
}

impl Settler for FolderSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let settler = self.clone();
        let finish = move |folder: &Folder| settler.finish(folder, &delivery, &outcome);
        Confirmation::run(self.broker.in_turn("settle", finish))
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let (settler, tags) = (self.clone(), tags.to_vec());
        let extend = move |folder: &Folder| settler.extend(folder, &tags);
        Confirmation::run(self.broker.in_turn("renew", extend))
    }

    fn abandon(&self, tag: u64) {
        let held = move |folder: &Folder| folder.held().remove(&tag);
        let free = move |folder: &Folder| held(folder).map_or(Ok(()), |held| folder.free(held));
        drop(self.broker.in_turn("abandon", free));
    }

    fn is_lost(&self, tag: u64) -> bool {
        !self.broker.folder.held().contains_key(&tag)
    }
}
