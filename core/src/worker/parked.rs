use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use super::shard::Held;

/// Deliveries that wait in the process for their time, the earliest first.
#[derive(Default)]
pub(super) struct Parked {
    heap: BinaryHeap<Entry>,
    sequence: u64,
    /// How many wait for the time before which no handler may see them.
    early: usize,
}

struct Entry {
    due: Reverse<(Instant, u64)>,
    held: Held,
    wait: Wait,
}

/// What a delivery waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Its next attempt, after one that failed.
    Retry,
    /// Its handler, which gave it back untouched.
    Release,
    /// Its return to the broker, since its handler gave it back untouched.
    GiveBack,
    /// The time before which no handler may see it.
    Early,
}

impl Parked {
    pub(super) fn push(&mut self, due: Instant, held: Held, wait: Wait) {
        self.sequence += 1;
        self.early += usize::from(wait == Wait::Early);
        self.heap.push(Entry { due: Reverse((due, self.sequence)), held, wait });
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Held, Wait)> {
        let Reverse((due, _)) = self.heap.peek()?.due;
        if due > now {
            return None;
        }
        let entry = self.heap.pop()?;
        self.early -= usize::from(entry.wait == Wait::Early);
        Some((entry.held, entry.wait))
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.due.0.0)
    }

    /// Whether any is due by then; one that is early knows its time wherever it waits.
    pub(super) fn is_any_due_by(&self, end: Instant) -> bool {
        self.heap.iter().any(|entry| entry.due.0.0 <= end && entry.wait != Wait::Early)
    }

    /// Whether any waits for the time before which no handler may see it.
    pub(super) fn has_early(&self) -> bool {
        self.early > 0
    }

    /// Takes out the one of these that is due last, if that is after `end`.
    pub(super) fn take_latest_early(&mut self, end: Instant) -> Option<(Instant, Held)> {
        let early = self.heap.iter().filter(|entry| entry.wait == Wait::Early);
        let latest = early.map(|entry| entry.due.0).max().filter(|(due, _)| *due > end)?;
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        let index = entries.iter().position(|entry| entry.due.0 == latest);
        let taken = index.map(|index| entries.swap_remove(index));
        self.heap = entries.into();
        self.early -= usize::from(taken.is_some());
        taken.map(|entry| (entry.due.0.0, entry.held))
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Instant, Held, Wait)> {
        self.early = 0;
        self.heap.drain().map(|entry| (entry.due.0.0, entry.held, entry.wait))
    }

    /// Takes out what is lost.
    pub(super) fn take_lost(&mut self) -> Vec<(Held, Wait)> {
        let (lost, kept): (Vec<_>, Vec<_>) =
            self.heap.drain().partition(|entry| entry.held.delivery.is_lost());
        self.early = kept.iter().filter(|entry| entry.wait == Wait::Early).count();
        self.heap = kept.into();
        lost.into_iter().map(|entry| (entry.held, entry.wait)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
