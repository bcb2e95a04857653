use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anybroker_core::Delivery;
use tokio::time::Instant;

use crate::id::Id;

use self::partitions::Partition;
pub(crate) use self::partitions::Reopening;

/// Which stream an entry is in: twice the partition's number, and one more for what was retried.
pub(crate) type Source = usize;

/// What is known of an entry that this consumer holds; with it, settlements are fenced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) tag: u64,
    pub(crate) source: Source,
    pub(crate) id: Id,
    /// How often it was delivered, this time included.
    pub(crate) count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No handler can have seen it.
    Waiting,
    Out,
    /// On its way back to the server. It is kept, so that what the server still has pending is not
    /// taken for lost.
    Settling,
}

#[derive(Debug)]
struct Entry {
    holding: Holding,
    state: State,
    /// When its lease runs out.
    until: Instant,
    suspect: bool,
}

/// What one consumer holds.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Entry>,
    /// How many wait or are out.
    open: usize,
    suspects: usize,
    /// By which the entries of an ordered group are held; `None` where each has its own lease.
    partitions: Option<Vec<Partition>>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No step in a lock panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more fit, and how many suspects are held.
    pub(crate) fn room(&self, prefetch: usize) -> (usize, usize) {
        let table = self.lock();
        // What is being settled is not the handlers' any more, but may not pile up either.
        let settling = table.entries.len() - table.open;
        (
            prefetch.saturating_sub(table.open).min((2 * prefetch + 1024).saturating_sub(settling)),
            table.suspects,
        )
    }

    /// Takes an entry in; answers its tag. One that is known already came once more: whoever
    /// settles it by its former tag is too late.
    pub(crate) fn insert(
        &self,
        source: Source,
        id: Id,
        count: u32,
        until: Instant,
        suspect: bool,
    ) -> u64 {
        let mut table = self.lock();
        if count > 1 {
            let known = |entry: &&Entry| entry.holding.source == source && entry.holding.id == id;
            if let Some(former) = table.entries.values().find(known).map(|entry| entry.holding.tag)
            {
                table.remove(former);
            }
        }
        let tag = table.next;
        table.next += 1;
        table.open += 1;
        table.suspects += usize::from(suspect);
        let holding = Holding { tag, source, id, count };
        table.entries.insert(tag, Entry { holding, state: State::Waiting, until, suspect });
        tag
    }

    /// Notes what is being handed out from `from` on; answers what must not be, to be dropped.
    pub(crate) fn hand_out(&self, out: &mut Vec<Delivery>, from: usize) -> Vec<Delivery> {
        let mut table = self.lock();
        let mut withheld = Vec::new();
        let mut index = from;
        while let Some(delivery) = out.get(index) {
            if table.hand_out(delivery.tag()) {
                index += 1;
            } else {
                withheld.push(out.remove(index));
            }
        }
        withheld
    }

    /// Begins to settle; `None` when it is too late. `shut` keeps an ordered partition from handing
    /// out what comes after this one.
    pub(crate) fn settle(&self, tag: u64, shut: bool) -> Option<Holding> {
        let mut table = self.lock();
        let entry = table.entries.get_mut(&tag)?;
        if entry.state == State::Settling {
            return None;
        }
        let unseen = entry.state == State::Waiting;
        entry.state = State::Settling;
        let holding = entry.holding;
        table.open -= 1;
        if shut && let Some(partition) = table.partition(holding.source / 2) {
            // Nothing passes what goes unseen out of a leaving one: all that waits goes back.
            partition.shut |= !(unseen && partition.leaving);
        }
        Some(holding)
    }

    /// Begins to give back what was dropped; answers also whether a handler may have seen it.
    pub(crate) fn abandon(&self, tag: u64, shut: bool) -> Option<(Holding, bool)> {
        let seen = self.lock().entries.get(&tag)?.state == State::Out;
        Some((self.settle(tag, shut)?, seen))
    }

    /// Forgets what is settled; answers whether that was the last suspect.
    pub(crate) fn remove(&self, tags: impl IntoIterator<Item = u64>) -> bool {
        let mut table = self.lock();
        let suspects = table.suspects;
        for tag in tags {
            table.remove(tag);
        }
        suspects > 0 && table.suspects == 0
    }

    /// Those of these that are out.
    pub(crate) fn out(&self, tags: &[u64]) -> Vec<Holding> {
        let table = self.lock();
        let entries = tags.iter().filter_map(|tag| table.entries.get(tag));
        entries.filter(|entry| entry.state == State::Out).map(|entry| entry.holding).collect()
    }

    /// Those that no handler has seen yet, and whose lease is over before `soon`.
    pub(crate) fn to_renew(&self, soon: Instant) -> Vec<Holding> {
        let table = self.lock();
        let waiting =
            table.entries.values().filter(|e| e.state == State::Waiting && e.until < soon);
        waiting.map(|entry| entry.holding).collect()
    }

    pub(crate) fn renewed(&self, tags: impl IntoIterator<Item = u64>, until: Instant) {
        let mut table = self.lock();
        for tag in tags {
            if let Some(entry) = table.entries.get_mut(&tag) {
                entry.until = until;
            }
        }
    }

    /// Whether the lease is over, or somebody else has it.
    pub(crate) fn is_lost(&self, tag: u64) -> bool {
        let table = self.lock();
        table.entries.get(&tag).is_none_or(|entry| table.until(entry) < Some(Instant::now()))
    }

    /// How many wait or are out.
    pub(crate) fn open(&self) -> usize {
        self.lock().open
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().entries.is_empty()
    }

    /// The ids of one source, which must not be received again.
    pub(crate) fn ids(&self, source: Source) -> Vec<String> {
        self.lock().ids(|entry| entry.holding.source == source)
    }

    /// Those of them that are on their way back. Received again before the server's answer came,
    /// one could not be told from what is to be settled.
    pub(crate) fn settling(&self, source: Source) -> Vec<String> {
        self.lock().ids(|entry| entry.holding.source == source && entry.state == State::Settling)
    }

    /// Forgets what is out and was not renewed: it is somebody else's, or comes again.
    pub(crate) fn forget_lost(&self) {
        let now = Some(Instant::now());
        let mut table = self.lock();
        let lost = |entry: &&Entry| entry.state == State::Out && table.until(entry) < now;
        let lost: Vec<_> = table.entries.values().filter(lost).map(|e| e.holding.tag).collect();
        for tag in lost {
            table.remove(tag);
        }
    }

    /// Begins to settle what no handler can have seen, to be given back.
    pub(crate) fn take_waiting(&self) -> Vec<Holding> {
        self.lock().take_waiting(|_| true)
    }

    /// Takes out everything for good: with whether a handler may have seen it.
    pub(crate) fn close(&self) -> Vec<(Holding, bool)> {
        let mut table = self.lock();
        table.open = 0;
        let entries = std::mem::take(&mut table.entries).into_values();
        entries
            .filter(|entry| entry.state != State::Settling)
            .map(|entry| (entry.holding, entry.state == State::Out))
            .collect()
    }
}

impl Table {
    fn ids(&self, meant: impl Fn(&Entry) -> bool) -> Vec<String> {
        let meant = self.entries.values().filter(|entry| meant(entry));
        meant.map(|entry| entry.holding.id.to_string()).collect()
    }

    fn take_waiting(&mut self, meant: impl Fn(&Holding) -> bool) -> Vec<Holding> {
        let waiting: Vec<_> = self
            .entries
            .values_mut()
            .filter(|entry| entry.state == State::Waiting && meant(&entry.holding))
            .map(|entry| {
                entry.state = State::Settling;
                entry.holding
            })
            .collect();
        self.open -= waiting.len();
        waiting
    }

    fn remove(&mut self, tag: u64) {
        if let Some(entry) = self.entries.remove(&tag) {
            self.open -= usize::from(entry.state != State::Settling);
            self.suspects -= usize::from(entry.suspect);
        }
    }

    fn hand_out(&mut self, tag: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&tag) else { return false };
        let now = Instant::now();
        if let Some(partitions) = &mut self.partitions {
            let partition = &mut partitions[entry.holding.source / 2];
            if partition.shut || partition.leaving {
                return false;
            }
            if partition.until < Some(now) {
                // It may be owned still, or again: then nothing passes what is withheld here.
                partition.shut = true;
                return false;
            }
        } else if entry.until < now {
            // Its lease ran out here, as everything stood still: somebody has it, or it comes again.
            self.remove(tag);
            return false;
        }
        if entry.state == State::Settling {
            // On its way back, so that it comes again.
            return false;
        }
        entry.state = State::Out;
        true
    }

    fn partition(&mut self, index: usize) -> Option<&mut Partition> {
        self.partitions.as_mut().map(|all| &mut all[index])
    }

    /// Until when an entry is this consumer's. In an ordered group that is as long as its partition
    /// is, since nobody else takes it before.
    fn until(&self, entry: &Entry) -> Option<Instant> {
        match &self.partitions {
            None => Some(entry.until),
            Some(partitions) => partitions[entry.holding.source / 2].until,
        }
    }
}

mod partitions;
#[cfg(test)]
mod tests;
