use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anybroker_core::{Confirmer, Delivery, Error, ErrorKind, Result};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, DeleteMessageBatchResultEntry};
use futures_util::{StreamExt, stream};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use crate::answers::{Answers, hide};
use crate::clients::CALL;
use crate::error::{BROKER, error_of, failed};
use crate::lane::{ENTRIES, Job};
use crate::topology::Topology;

const SETTLE: &str = "settle";

/// The longest that SQS hides a message that was received, from then on.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_hours(12);

/// What a delete waits that was refused as one too many.
const SLOWED_DOWN: Duration = Duration::from_millis(500);

/// Calls at once that renew.
const CALLS: usize = 8;

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

    /// Takes in what a receive that began then has brought; answers its tag.
    pub(crate) fn insert(
        &self,
        receipt: Receipt,
        group: Option<String>,
        place: OwnedSemaphorePermit,
        began: Instant,
    ) -> u64 {
        let poll = self.topology.settings.poll;
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

    /// Renews what no handler can have yet.
    pub(crate) async fn renew_waiting(&self) {
        let waiting: Vec<_> = {
            let table = self.table();
            let waiting =
                |(tag, entry): (&u64, &Entry)| (entry.state == State::Waiting).then_some(*tag);
            table.entries.iter().filter_map(waiting).collect()
        };
        if let Err(error) = self.renew(&waiting).await {
            tracing::warn!(%error, waiting = waiting.len(), "leases were not renewed");
        }
    }

    /// Renews; what turns out to be gone is lost.
    pub(crate) async fn renew(&self, tags: &[u64]) -> Result<()> {
        let mut renewed = Ok(());
        let began = Instant::now();
        let all = {
            let table = self.table();
            let hide = |tag: &u64| {
                let entry = table.entries.get(tag);
                // To renew what goes back or ran out would hide it from the others.
                let entry = entry.filter(|entry| {
                    let goes_back = matches!(entry.state, State::Returning | State::Lost);
                    !table.closed && !goes_back && entry.deadline > began
                })?;
                Some((*tag, Arc::clone(&entry.receipt), self.visibility))
            };
            tags.iter().filter_map(hide).collect()
        };
        let mut followers = Vec::new();
        for (tag, result) in self.hide_all(all).await {
            let mut table = self.table();
            let Some(entry) = table.entries.get_mut(&tag) else { continue };
            match result {
                Ok(()) => entry.deadline = began + self.visibility,
                Err(error) if error.kind() == ErrorKind::StaleDelivery => {
                    if matches!(entry.state, State::Waiting | State::HandedOut) {
                        entry.state = State::Lost;
                        followers.extend(table.lose_followers(tag));
                    }
                }
                Err(error) => renewed = Err(error),
            }
        }
        let followers = followers.into_iter();
        let followers = followers.map(|(tag, receipt)| (tag, receipt, Duration::ZERO)).collect();
        for (tag, result) in self.hide_all(followers).await {
            if let Err(error) = result {
                tracing::debug!(%error, tag, "a delivery comes back when its lease runs out");
            }
        }
        renewed
    }

    /// Hides deliveries for so long from now.
    async fn hide_all(&self, hide: Vec<(u64, Receipt, Duration)>) -> Vec<(u64, Result<()>)> {
        let batches = hide.chunks(ENTRIES).map(|batch| async move {
            let until = self.earliest(batch.iter().map(|(tag, ..)| *tag));
            let hide = batch.iter().map(|(_, receipt, time)| (&**receipt, *time));
            let answers = self.hide(hide, until).await;
            batch.iter().map(|(tag, ..)| *tag).zip(answers).collect::<Vec<_>>()
        });
        stream::iter(batches.collect::<Vec<_>>()).buffer_unordered(CALLS).concat().await
    }

    /// One call, until then: later it would be about what somebody else may have.
    async fn hide(
        &self,
        batch: impl ExactSizeIterator<Item = (&str, Duration)>,
        until: Instant,
    ) -> Vec<Result<()>> {
        let count = batch.len();
        let hidden = hide(&self.topology, &self.queue, SETTLE, batch);
        timeout_at(until, hidden).await.unwrap_or_else(|_| late(count))
    }

    /// When the first of these leases runs out.
    fn earliest(&self, tags: impl Iterator<Item = u64>) -> Instant {
        let table = self.table();
        let deadlines = tags.filter_map(|tag| table.entries.get(&tag)).map(|entry| entry.deadline);
        deadlines.min().unwrap_or_else(|| Instant::now() + CALL)
    }

    /// One call that gives back.
    pub(crate) async fn give_back(self: Arc<Self>, batch: Vec<GiveBack>) {
        let until = self.earliest(batch.iter().map(|back| back.tag));
        let hide = batch.iter().map(|back| (&*back.receipt, back.after));
        let answers = self.hide(hide, until).await;
        for (back, answer) in batch.into_iter().zip(answers) {
            match back.then {
                Then::Nothing => {}
                Then::End => self.end(back.tag),
                Then::Confirm(confirmer) => {
                    self.end(back.tag);
                    confirmer.confirm(answer);
                }
            }
        }
    }

    /// One call that deletes; each delivery is let go of.
    pub(crate) async fn delete(self: Arc<Self>, batch: Vec<Delete>) {
        let mut deleted = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut stale = Vec::new();
        {
            let (table, now) = (self.table(), Instant::now());
            for Delete(tag, confirmer) in batch {
                // It may have waited for its turn past its lease.
                let entry = table.entries.get(&tag).filter(|entry| entry.deadline > now);
                let request = entry.and_then(|entry| {
                    DeleteMessageBatchRequestEntry::builder()
                        .id(deleted.len().to_string())
                        .receipt_handle(&*entry.receipt)
                        .build()
                        .ok()
                });
                match request {
                    Some(request) => {
                        entries.push(request);
                        deleted.push(Delete(tag, confirmer));
                    }
                    None => stale.push(Delete(tag, confirmer)),
                }
            }
        }
        for Delete(tag, confirmer) in stale {
            drop(self.lose_followers(tag));
            self.end(tag);
            confirmer.confirm(Err(ran_out()));
        }
        if deleted.is_empty() {
            return;
        }
        let mut answers = Answers::new(SETTLE, deleted.len());
        let delete = self.topology.clients.calls.delete_message_batch().queue_url(&*self.queue);
        let until = self.earliest(deleted.iter().map(|Delete(tag, _)| *tag));
        match timeout_at(until, delete.set_entries(Some(entries)).send()).await {
            Err(_) => answers.all = late(deleted.len()),
            Ok(Ok(sent)) => {
                let refused = sent.failed().iter();
                answers.fill(
                    &self.queue,
                    sent.successful().iter().map(DeleteMessageBatchResultEntry::id),
                    refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
                );
            }
            Ok(Err(error)) => answers.fail(&failed(SETTLE, &self.queue, error)),
        }
        let mut again = Vec::new();
        for (Delete(tag, confirmer), answer) in deleted.into_iter().zip(answers.all) {
            if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Blocked) {
                again.push(Delete(tag, confirmer));
                continue;
            }
            if answer.is_err() {
                // It comes again: in order nothing may pass it. They come when their leases end.
                drop(self.lose_followers(tag));
            }
            self.end(tag);
            confirmer.confirm(answer);
        }
        if !again.is_empty() {
            // Slowed down; until the lease runs out there is time.
            sleep(SLOWED_DOWN).await;
            Box::pin(self.delete(again)).await;
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

/// What was not answered before the first lease ran out.
fn late(count: usize) -> Vec<Result<()>> {
    let text = "no answer before the lease ran out";
    (0..count).map(|_| Err(error_of(ErrorKind::Timeout, SETTLE, text))).collect()
}

fn ran_out() -> Error {
    let text = "the lease ran out or the delivery went back; it comes again, here or elsewhere";
    Error::stale(text).broker(BROKER).operation(SETTLE)
}
