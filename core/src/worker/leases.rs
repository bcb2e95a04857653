use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::source::Lease;
use crate::Settler;

/// The tags of the deliveries that a shard holds, shared with the task that renews their leases.
///
/// Renewing in a task of its own means that a handler which blocks its thread does not cost the
/// other deliveries of the shard their leases. A slot is one atomic, so that a delivery which is
/// settled long before its lease runs out costs two stores.
pub(super) struct Leases {
    tags: Arc<[AtomicU64]>,
    free: Vec<u32>,
    capacity: usize,
    task: Option<JoinHandle<()>>,
}

/// A place in the table; `None` where deliveries are not leased.
pub(super) type LeaseSlot = Option<u32>;

const EMPTY: u64 = u64::MAX;

impl Leases {
    /// `capacity` is the most deliveries that are held at once.
    pub(super) fn start(lease: Lease, capacity: usize) -> Self {
        let mut leases = Self { tags: Arc::new([]), free: Vec::new(), capacity, task: None };
        leases.renew_with(lease);
        leases
    }

    /// Renews with the settler of a new consumer; what the former one handed out is not renewed
    /// any more.
    pub(super) fn renew_with(&mut self, lease: Lease) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let Some((settler, lease)) = lease else { return };
        if self.tags.is_empty() {
            self.tags = (0..self.capacity).map(|_| AtomicU64::new(EMPTY)).collect();
            self.free = (0..u32::try_from(self.capacity).unwrap_or(u32::MAX)).rev().collect();
        }
        for tag in &*self.tags {
            tag.store(EMPTY, Ordering::Relaxed);
        }
        self.task = Some(tokio::spawn(renew(Arc::clone(&self.tags), settler, lease)));
    }

    pub(super) fn hold(&mut self, tag: u64) -> LeaseSlot {
        let slot = self.free.pop()?;
        self.tags[slot as usize].store(tag, Ordering::Relaxed);
        Some(slot)
    }

    pub(super) fn let_go(&mut self, slot: LeaseSlot) {
        if let Some(slot) = slot {
            self.tags[slot as usize].store(EMPTY, Ordering::Relaxed);
            self.free.push(slot);
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
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
