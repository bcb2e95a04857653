mod calls;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anybroker_core::{Confirmer, Delivery, Error};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::error::BROKER;
use crate::lane::Job;
use crate::topology::Topology;

const SETTLE: &str = "settle";

/// The longest that SQS hides a message that was received, from then on.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_hours(12);

/// What a consumer has received and not settled.
#[derive(Debug)]
pub(crate) struct Held {
    topology: Arc<Topology>,
    queue: Arc<str>,
    /// How long a receive or a renewal hides a message; whole seconds, as SQS has it.
    pub(crate) visibility: Duration,
    table: Mutex<Table>,
    /// Told when a delivery is settled.
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    last: u64,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    receipt: Receipt,
    /// Its message group, in order.
    group: Option<String>,
    received: Instant,
    /// When the lease runs out by this clock, which no adjustment moves.
    deadline: Instant,
    state: State,
    _place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No handler can have it yet.
    Waiting,
    HandedOut,
    Settling,
    /// It is being given back.
    Returning,
    /// It went back, or to somebody else.
    Lost,
}

/// A message that is to be deleted.
pub(crate) struct Delete(pub(crate) u64, pub(crate) Confirmer);

/// A message that is to be given back, to be seen again after so long.
pub(crate) struct GiveBack {
    pub(crate) tag: u64,
    pub(crate) receipt: Receipt,
    pub(crate) after: Duration,
    pub(crate) then: Then,
}

/// What becomes of a delivery once it is given back.
pub(crate) enum Then {
    /// The worker still has to let go of it.
    Nothing,
    /// It is let go of.
    End,
    /// The same, and its settlement is answered.
    Confirm(Confirmer),
}

type Receipt = Arc<str>;

impl Job for Delete {}
impl Job for GiveBack {}

impl Table {
    fn lose_followers(&mut self, tag: u64) -> Vec<(u64, Receipt)> {
        let Some(group) = self.entries.get(&tag).and_then(|entry| entry.group.clone()) else {
            return Vec::new();
        };
        let mut lost = Vec::new();
        for (later, entry) in &mut self.entries {
            let follows = *later > tag && entry.group.as_ref() == Some(&group);
            if follows && matches!(entry.state, State::Waiting | State::HandedOut) {
                entry.state = State::Lost;
                lost.push((*later, Arc::clone(&entry.receipt)));
            }
        }
        lost
    }
}

impl Held {
    pub(crate) fn new(topology: Arc<Topology>, queue: Arc<str>, lease: Duration) -> Self {
        let seconds = lease.as_secs() + u64::from(lease.subsec_nanos() > 0);
        let visibility = Duration::from_secs(seconds.max(1)).min(LONGEST_HOLD);
        Self { topology, queue, visibility, table: Mutex::default(), changed: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a receive waits for messages: one whose process was killed would take, count and
    /// hide once more what comes back when its leases run out.
    pub(crate) fn poll(&self) -> Duration {
        let third = Duration::from_secs(self.visibility.as_secs() / 3);
        self.topology.settings.poll.min(third).max(Duration::from_secs(1))
    }

    /// Takes in what a receive that began then has brought; answers its tag.
    pub(crate) fn insert(
        &self,
        receipt: Receipt,
        group: Option<String>,
        place: OwnedSemaphorePermit,
        began: Instant,
    ) -> u64 {
        let poll = self.poll();
        let deadline = if self.visibility > poll * 2 {
            began + self.visibility
        } else {
            // This process may have stood still since the answer came, which took as long as the
            // poll at most; it was under way while the lease ran.
            let answered = Instant::now().min(began + poll + Duration::from_secs(1));
            answered + self.visibility - (self.visibility / 10).min(Duration::from_secs(2))
        };
        let mut table = self.table();
        table.last += 1;
        let tag = table.last;
        let state = State::Waiting;
        let entry = Entry { receipt, group, received: began, deadline, state, _place: place };
        table.entries.insert(tag, entry);
        tag
    }

    /// Notes that the worker has the deliveries from this index on, and renews them from now on;
    /// those that are lost are taken out.
    pub(crate) fn hand_out(&self, deliveries: &mut Vec<Delivery>, from: usize) {
        let mut lost = Vec::new();
        {
            let (mut table, now) = (self.table(), Instant::now());
            for index in (from..deliveries.len()).rev() {
                match table.entries.get_mut(&deliveries[index].tag()) {
                    Some(entry) if entry.state == State::Waiting && entry.deadline > now => {
                        entry.state = State::HandedOut;
                    }
                    // Dropped without the lock, which that takes.
                    _ => lost.push(deliveries.remove(index)),
                }
            }
        }
        drop(lost);
    }

    /// Begins to settle; the place is held until [`end`](Self::end).
    pub(crate) fn begin(&self, tag: u64) -> Result<(), Stale> {
        let mut table = self.table();
        let closed = table.closed;
        let Some(entry) = table.entries.get_mut(&tag) else { return Err(Stale::Gone) };
        if entry.state == State::Lost {
            table.entries.remove(&tag);
            self.changed.notify_waiters();
            return Err(Stale::GivenBack);
        }
        if closed || entry.deadline <= Instant::now() {
            return Err(Stale::RanOut);
        }
        entry.state = State::Settling;
        Ok(())
    }

    /// Lets go of a delivery.
    pub(crate) fn end(&self, tag: u64) {
        self.table().entries.remove(&tag);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_lost(&self, tag: u64) -> bool {
        let table = self.table();
        let held = |entry: &Entry| entry.state != State::Lost && entry.deadline > Instant::now();
        table.closed || !table.entries.get(&tag).is_some_and(held)
    }

    /// Marks what came later in the group of this delivery as lost, and answers it: those must not
    /// pass the one that goes back.
    pub(crate) fn lose_followers(&self, tag: u64) -> Vec<(u64, Receipt)> {
        self.table().lose_followers(tag)
    }

    /// Begins to give back what is being settled, and answers its receipt.
    pub(crate) fn give_up(&self, tag: u64) -> Option<Receipt> {
        let mut table = self.table();
        let entry = table.entries.get_mut(&tag)?;
        entry.state = State::Returning;
        Some(Arc::clone(&entry.receipt))
    }

    /// How long a delivery can still be hidden.
    pub(crate) fn longest(&self, tag: u64) -> Duration {
        let table = self.table();
        // Two seconds for the way there, and for a part of one that is rounded up.
        let held = |entry: &Entry| entry.received.elapsed() + Duration::from_secs(2);
        let held = table.entries.get(&tag).map_or(LONGEST_HOLD, held);
        LONGEST_HOLD.saturating_sub(held)
    }

    /// Which of so many lanes deletes it: of a group in order always the same.
    pub(crate) fn lane(&self, tag: u64, lanes: usize) -> usize {
        let mut hasher = DefaultHasher::new();
        self.table().entries.get(&tag).map(|entry| &entry.group).hash(&mut hasher);
        usize::try_from(hasher.finish() % lanes as u64).unwrap_or_default()
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.table().entries.is_empty()
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.table().entries.len()
    }

    /// Ends when no settlement is under way.
    pub(crate) async fn settled(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let settles = |entry: &Entry| matches!(entry.state, State::Settling | State::Returning);
            if !self.table().entries.values().any(settles) {
                return;
            }
            changed.await;
        }
    }

    /// Makes every delivery stale and gives back what is held, as a crash would in the end.
    pub(crate) async fn close(&self) {
        let held: Vec<_> = {
            let mut table = self.table();
            table.closed = true;
            let now = Instant::now();
            // What ran out may be somebody else's by now, and the rest is on its way.
            let held = |entry: &Entry| {
                matches!(entry.state, State::Waiting | State::HandedOut) && entry.deadline > now
            };
            let hide = |(tag, entry): (&u64, &Entry)| {
                held(entry).then(|| (*tag, Arc::clone(&entry.receipt), Duration::ZERO))
            };
            table.entries.iter().filter_map(hide).collect()
        };
        for (tag, result) in self.hide_all(held).await {
            if let Err(error) = result {
                tracing::debug!(%error, tag, "a delivery comes back when its lease runs out");
            }
        }
    }
}

/// Why a delivery cannot be settled any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    Gone,
    RanOut,
    /// With an earlier one of its group.
    GivenBack,
}

impl From<Stale> for Error {
    fn from(_: Stale) -> Self {
        ran_out()
    }
}

fn ran_out() -> Error {
    let text = "the lease ran out or the delivery went back; it comes again, here or elsewhere";
    Error::stale(text).broker(BROKER).operation(SETTLE)
}
