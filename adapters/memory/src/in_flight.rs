use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Connection;
use crate::entry::Entry;
use crate::signals::Signals;

/// What one consumer was handed and has not settled.
///
/// Only the consumer and its settler touch it, and a scan for leases that ran out: settling takes
/// no lock that another consumer wants. Locked after the destination, never before.
pub(crate) struct InFlight {
    pub(crate) connection: Arc<Connection>,
    pub(crate) lease: Duration,
    table: Mutex<Table>,
}

/// A slab: a tag is a slot's index and generation, so that a tag that was used finds nothing.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The consumer, when it waits for one of its places.
    blocked: Option<Waker>,
    consumer_gone: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    held: Option<(Entry, Instant)>,
}

impl InFlight {
    pub(crate) fn new(connection: Arc<Connection>, lease: Duration) -> Self {
        Self { connection, lease, table: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a delivery out; `None` when it is no longer this consumer's.
    pub(crate) fn remove(&self, tag: u64) -> Option<Entry> {
        let mut table = self.lock();
        let entry = table.remove(tag)?;
        let blocked = table.unblock();
        drop(table);
        if let Some(consumer) = blocked {
            consumer.wake();
        }
        Some(entry)
    }

    /// Whether a delivery is still this consumer's.
    pub(crate) fn holds(&self, tag: u64) -> bool {
        self.lock().slot(tag).is_some_and(|slot| slot.held.is_some())
    }

    /// Extends leases; tags that are gone are skipped.
    pub(crate) fn renew(&self, tags: &[u64]) {
        let expires = Instant::now() + self.lease;
        let mut table = self.lock();
        for tag in tags {
            if let Some((_, end)) = table.slot(*tag).and_then(|slot| slot.held.as_mut()) {
                // A test may have moved the clock of the worker, and the background's is behind it then.
                *end = expires.max(*end);
            }
        }
    }

    /// Notes that nobody waits for a place any more; answers whether nothing is in flight.
    pub(crate) fn leave(&self, signals: &mut Signals) -> bool {
        let mut table = self.lock();
        table.consumer_gone = true;
        signals.wake(table.unblock());
        table.is_forgotten()
    }
}

impl Table {
    pub(crate) fn insert(&mut self, entry: Entry, expires: Instant) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 deliveries are in flight")
        });
        let slot = &mut self.slots[index as usize];
        slot.held = Some((entry, expires));
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn slot(&mut self, tag: u64) -> Option<&mut Slot> {
        let (index, generation) = (tag & u64::from(u32::MAX), tag >> 32);
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        (u64::from(slot.generation) == generation).then_some(slot)
    }

    fn remove(&mut self, tag: u64) -> Option<Entry> {
        let slot = self.slot(tag)?;
        let (entry, _) = slot.held.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u32::try_from(tag & u64::from(u32::MAX)).ok()?);
        Some(entry)
    }

    /// Takes out what `is_lost` says of its lease's end; answers the earliest end of the rest.
    pub(crate) fn reclaim(
        &mut self,
        is_lost: impl Fn(Instant) -> bool,
        lost: &mut Vec<Entry>,
    ) -> Option<Instant> {
        let mut earliest = None;
        for (index, slot) in (0_u32..).zip(&mut self.slots) {
            match &slot.held {
                Some((_, end)) if is_lost(*end) => {
                    slot.generation = slot.generation.wrapping_add(1);
                    lost.extend(slot.held.take().map(|(entry, _)| entry));
                    self.free.push(index);
                }
                Some((_, end)) => earliest = earliest.into_iter().chain([*end]).min(),
                None => {}
            }
        }
        earliest
    }

    pub(crate) fn block(&mut self, consumer: &Waker, signals: &mut Signals) {
        if self.blocked.as_ref().is_none_or(|known| !known.will_wake(consumer)) {
            signals.wake(self.blocked.replace(consumer.clone()));
        }
    }

    pub(crate) fn unblock(&mut self) -> Option<Waker> {
        self.blocked.take()
    }

    /// Whether the consumer is gone and everything that it was handed is settled.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.consumer_gone && self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
