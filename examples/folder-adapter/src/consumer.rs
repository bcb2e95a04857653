use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anybroker_core::{
    Confirmation, Consumer, Delivery, ErrorKind, Hop, Outcome, Result, Settler, Subscription, now,
};
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::connection::{Connection, Held};
use crate::folder::{Folder, list, lock, read, refused, remove, rename};
use crate::name::{DEAD, FREE, HELD, Name, nanos};

/// How often a consumer that waits looks into its folder.
const INTERVAL: Duration = Duration::from_millis(20);

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

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        Some((Arc::new(self.settler.clone()), self.settler.lease))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let connection = self.settler.connection.clone();
        drop(self);
        connection.in_turn("close", |_| Ok(())).await
    }
}

/// Takes, renews and settles for one consumer.
#[derive(Clone, Debug)]
pub(crate) struct FolderSettler {
    pub(crate) connection: Connection,
    /// Tells its deliveries from those of the connection's other consumers.
    pub(crate) id: u64,
    pub(crate) group: PathBuf,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) prefetch: usize,
    pub(crate) lease: Duration,
}

impl FolderSettler {
    async fn receive(self, max: usize) -> Result<Unseen> {
        loop {
            let settler = self.clone();
            let taken = self.connection.in_turn("receive", move |folder| settler.take(folder, max));
            match taken.await? {
                taken if taken.0.is_empty() => sleep(INTERVAL).await,
                taken => return Ok(taken),
            }
        }
    }

    /// Takes messages that are due. In an ordered group, a key's first one hides the others, be it
    /// held, delayed or free.
    fn take(&self, folder: &Folder, max: usize) -> io::Result<Unseen> {
        folder.check()?;
        let _lock = lock(&self.group)?;
        let (mut held, mut taken, mut keys) =
            (self.connection.held(), Unseen::default(), HashSet::new());
        let room = self.prefetch - held.values().filter(|held| held.consumer == self.id).count();
        let (room, now) = (room.min(max), now());
        for name in list(&self.group)? {
            let hides = self.subscription.is_ordered() && name.key != 0 && name.state != DEAD;
            let hidden = hides && !keys.insert(name.key);
            if hidden || name.state == DEAD || name.due > nanos(now) || taken.0.len() == room {
                continue;
            }
            let (envelope, hop) = read(&self.group, name, self.subscription.destination().name())?;
            let due = nanos(now + self.lease);
            let mine = Name { due, deliveries: name.deliveries + 1, state: HELD, ..name };
            rename(&self.group, name, mine)?;
            let tag = folder.later();
            held.insert(tag, Held { consumer: self.id, group: self.group.clone(), name: mine });
            let hop = (hop != Hop::default()).then(|| Box::new(hop));
            let returned = u32::try_from(name.deliveries).unwrap_or(u32::MAX);
            let settler = Arc::new(self.clone());
            taken.0.push(Delivery::new(Arc::new(envelope), hop, returned, tag, settler));
        }
        Ok(taken)
    }

    /// Stores the new copy, durably, and then removes the old one.
    fn finish(&self, folder: &Folder, delivery: &Delivery, outcome: Outcome) -> io::Result<()> {
        let _lock = lock(&self.group)?;
        let held = self.connection.held().remove(&delivery.tag());
        let is_there = |held: &Held| self.group.join(held.name.to_string()).exists();
        let Some(Held { name, .. }) = held.filter(is_there) else {
            let text = "its lease ran out or the broker was closed, and it was given back";
            return Err(refused(ErrorKind::StaleDelivery, text));
        };
        let (hop, state) = match outcome {
            Outcome::Ack => return remove(&self.group, name),
            Outcome::Retry { after } => (Hop::retry(delivery, after), FREE),
            Outcome::Release { after } => (Hop::release(delivery, after), FREE),
            Outcome::DeadLetter { reason } => {
                (Hop::dead_letter(delivery, &reason, &self.subscription), DEAD)
            }
        };
        // In its old place, where the order wants it.
        let due = hop.not_before.map_or(0, nanos);
        let copy = Name { due, deliveries: 0, state, ..name };
        folder.store(&self.group, copy, delivery.envelope(), &hop)?;
        remove(&self.group, name)
    }

    fn extend(&self, tags: &[u64]) -> io::Result<()> {
        let _lock = lock(&self.group)?;
        let (mut held, due) = (self.connection.held(), nanos(now() + self.lease));
        for tag in tags {
            let Some(held) = held.get_mut(tag) else { continue };
            let renewed = Name { due, ..held.name };
            match rename(&self.group, held.name, renewed) {
                Ok(()) => held.name = renewed,
                // It is lost, as its settlement will tell.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Settler for FolderSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let settler = self.clone();
        let finish = move |folder: &Folder| settler.finish(folder, &delivery, outcome);
        Confirmation::run(self.connection.in_turn("settle", finish))
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let (settler, tags) = (self.clone(), tags.to_vec());
        Confirmation::run(self.connection.in_turn("renew", move |_| settler.extend(&tags)))
    }

    fn abandon(&self, tag: u64) {
        let held = self.connection.clone();
        let abandon = move |_: &Folder| held.held().remove(&tag).map_or(Ok(()), |held| held.free());
        drop(self.connection.in_turn("abandon", abandon));
    }

    fn is_lost(&self, tag: u64) -> bool {
        !self.connection.held().contains_key(&tag)
    }
}
