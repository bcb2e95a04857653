use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::source::Lease;
use crate::Settler;
use crate::adapter::Background;

/// The leases of the deliveries that a shard holds, in a table for each consumer that handed some
/// of them out.
pub(super) struct Leases {
    tables: Vec<Table>,
    /// That of the consumer that is open, whose deliveries may need no renewal.
    current: u32,
    capacity: usize,
}

/// The tags of one consumer's deliveries, shared with the task that renews their leases.
///
/// They are renewed in the background, so that a handler which blocks its thread costs no delivery
/// its lease, on a runtime of one thread either. A slot is one atomic: a delivery that is settled
/// long before its lease runs out costs two stores.
struct Table {
    number: u32,
    tags: Arc<[AtomicU64]>,
    free: Vec<u32>,
    tasks: Vec<JoinHandle<()>>,
}

/// A place in a table; `None` where deliveries are not leased.
pub(super) type LeaseSlot = Option<Place>;

#[derive(Clone, Copy)]
pub(super) struct Place {
    table: u32,
    index: u32,
}

const EMPTY: u64 = u64::MAX;

impl Leases {
    /// `capacity` is the most deliveries that are held at once.
    pub(super) fn start(lease: Lease, capacity: usize) -> Self {
        let mut leases = Self { tables: Vec::new(), current: 0, capacity };
        leases.renew_with(lease);
        leases
    }

    /// Renews what comes from now on with the settler of a new consumer. What the former one handed
    /// out is renewed by that one's until it is settled.
    pub(super) fn renew_with(&mut self, lease: Lease) {
        self.tables.retain(Table::is_used);
        self.current = self.current.wrapping_add(1);
        if let Some((settler, lease)) = lease {
            self.tables.push(Table::new(self.current, self.capacity, settler, lease));
        }
    }

    pub(super) fn hold(&mut self, tag: u64) -> LeaseSlot {
        let table = self.tables.last_mut().filter(|table| table.number == self.current)?;
        let index = table.free.pop()?;
        table.tags[index as usize].store(tag, Ordering::Relaxed);
        Some(Place { table: table.number, index })
    }

    pub(super) fn let_go(&mut self, slot: LeaseSlot) {
        let Some(Place { table: number, index }) = slot else { return };
        let place = self.tables.iter().position(|table| table.number == number);
        let Some(place) = place else { return };
        let table = &mut self.tables[place];
        table.tags[index as usize].store(EMPTY, Ordering::Relaxed);
        table.free.push(index);
        if number != self.current && !table.is_used() {
            self.tables.remove(place);
        }
    }
}

impl Table {
    fn new(number: u32, capacity: usize, settler: Arc<dyn Settler>, lease: Duration) -> Self {
        let tags: Arc<[_]> = (0..capacity).map(|_| AtomicU64::new(EMPTY)).collect();
        let free = (0..u32::try_from(capacity).unwrap_or(u32::MAX)).rev().collect();
        let mut tasks = Vec::new();
        if settler.runs_by_runtime_clock() {
            tasks.push(tokio::spawn(renew(Arc::clone(&tags), Arc::clone(&settler), lease)));
        }
        tasks.push(Background::handle().spawn(renew(Arc::clone(&tags), settler, lease)));
        Self { number, tags, free, tasks }
    }

    fn is_used(&self) -> bool {
        self.free.len() < self.tags.len()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Renews at a third of the lease, so that two renewals may fail before one runs out.
async fn renew(tags: Arc<[AtomicU64]>, settler: Arc<dyn Settler>, lease: Duration) {
    let every = lease / 3;
    let mut tick = interval_at(Instant::now() + every, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let held: Vec<u64> = tags
            .iter()
            .map(|tag| tag.load(Ordering::Relaxed))
            .filter(|tag| *tag != EMPTY)
            .collect();
        if held.is_empty() {
            continue;
        }
        // The next tick must not wait for an answer that does not come.
        match tokio::time::timeout(every, settler.renew(&held)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, held = held.len(), "leases were not renewed"),
            Err(_) => tracing::warn!(held = held.len(), "leases were not renewed in time"),
        }
    }
}
