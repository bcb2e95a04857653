use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use anybroker_core::{DeadLetterFilter, Depth, Envelope, Hop, Subscription, now};
use tokio::time::Instant;

use crate::dead_letters::DeadLetters;
use crate::entry::Entry;
use crate::in_flight::InFlight;
use crate::lanes::Lanes;
use crate::signals::Signals;

/// The messages of one group, and the consumers that wait for them.
///
/// A message is in exactly one place: ready, given back, delayed, held in a lane, in flight with a
/// consumer, or a dead letter.
///
/// No task runs here. A consumer that finds nothing waits, with a timer for the group's
/// [`next_deadline`](Self::next_deadline). Whatever becomes ready, and a deadline earlier than their
/// timers, wakes all that wait: one alone may be kept from polling by a handler that blocks its
/// thread, and would keep the message from the others. Who is woken waits no more, so that only the
/// first message of a burst pays for it.
pub(crate) struct Group {
    name: String,
    shape: Shape,
    ready: VecDeque<Entry>,
    /// Ready again, by number: handed out first, in the order of their sends.
    given_back: BTreeMap<u64, Entry>,
    delayed: BTreeMap<(Instant, u64), Entry>,
    /// Only where the group is ordered.
    lanes: Option<Lanes>,
    pub(crate) dead_letters: DeadLetters,
    in_flight: Vec<Arc<InFlight>>,
    /// No lease ends earlier; the exact time is looked up when this one has come.
    earliest_lease_end: Option<Instant>,
    waiting: Vec<(u64, Waker)>,
    next_number: u64,
    next_consumer: u64,
}

/// What must be declared alike by all consumers of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) ordered: bool,
    pub(crate) partitions: u16,
}

impl Group {
    pub(crate) fn new(name: &str, shape: Shape) -> Self {
        Self {
            name: name.to_owned(),
            shape,
            ready: VecDeque::new(),
            given_back: BTreeMap::new(),
            delayed: BTreeMap::new(),
            lanes: shape.ordered.then(Lanes::default),
            dead_letters: DeadLetters::default(),
            in_flight: Vec::new(),
            earliest_lease_end: None,
            waiting: Vec::new(),
            next_number: 0,
            next_consumer: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// How many messages wait, whatever for.
    pub(crate) fn backlog(&self) -> usize {
        let held = self.lanes.as_ref().map_or(0, Lanes::len);
        self.ready.len() + self.given_back.len() + self.delayed.len() + held
    }

    /// Stores a new message behind all others.
    pub(crate) fn store(
        &mut self,
        envelope: Arc<Envelope>,
        since: Instant,
        due: Option<Instant>,
        signals: &mut Signals,
    ) {
        let entry = Entry::new(envelope, since, self.next_number);
        self.next_number += 1;
        self.enter(entry, due, signals);
    }

    /// Stores up to `limit` of the dead letters below the number `end` behind all other messages;
    /// answers how many.
    pub(crate) fn redrive(
        &mut self,
        filter: &DeadLetterFilter,
        limit: u64,
        end: u64,
        signals: &mut Signals,
    ) -> u64 {
        let since = Instant::now();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut count = 0;
        for letter in self.dead_letters.take(filter, limit, end, now()) {
            let entry =
                Entry { since, number: self.next_number, ..letter.with_hop(Hop::redrive()) };
            self.next_number += 1;
            self.enter(entry, None, signals);
            count += 1;
        }
        count
    }

    fn enter(&mut self, entry: Entry, due: Option<Instant>, signals: &mut Signals) {
        match &mut self.lanes {
            None => self.place(entry, due, signals),
            Some(lanes) => {
                if let Some((entry, due)) = lanes.enter((entry, due)) {
                    self.place(entry, due, signals);
                }
            }
        }
    }

    /// Stores the next copy of a message that was in flight, in its key's place.
    pub(crate) fn place(&mut self, entry: Entry, due: Option<Instant>, signals: &mut Signals) {
        let Some(due) = due else {
            self.ready.push_back(entry);
            return self.wake(signals);
        };
        let is_earlier = self.next_deadline().is_none_or(|next| due < next);
        self.delayed.insert((due, entry.number), entry);
        if is_earlier {
            self.wake(signals);
        }
    }

    /// Puts a message back where it was.
    pub(crate) fn give_back(&mut self, entry: Entry, signals: &mut Signals) {
        self.given_back.insert(entry.number, entry);
        self.wake(signals);
    }

    /// Lets the next message of a key go on after one that is settled for good.
    pub(crate) fn finish(&mut self, settled: &Entry, signals: &mut Signals) {
        let next = self.lanes.as_mut().and_then(|lanes| lanes.leave(settled));
        if let Some((entry, due)) = next {
            self.place(entry, due, signals);
        }
    }

    /// Makes ready what is due and whose lease has run out.
    pub(crate) fn advance(&mut self, now: Instant, signals: &mut Signals) {
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            self.ready.push_back(first.remove());
            self.wake(signals);
        }
        if self.earliest_lease_end.is_some_and(|end| end <= now) {
            self.reclaim(|_, end| end <= now, signals);
        }
    }

    /// Takes deliveries away from their consumers: attempts, since their handlers may have run.
    pub(crate) fn reclaim(
        &mut self,
        is_lost: impl Fn(&InFlight, Instant) -> bool,
        signals: &mut Signals,
    ) {
        let mut lost = Vec::new();
        let mut earliest = None;
        self.in_flight.retain(|in_flight| {
            let mut table = in_flight.lock();
            let before = lost.len();
            let kept = table.reclaim(|end| is_lost(in_flight, end), &mut lost);
            earliest = earliest.into_iter().chain(kept).min();
            if lost.len() > before {
                signals.wake(table.unblock());
            }
            !table.is_forgotten()
        });
        self.earliest_lease_end = earliest;
        for mut entry in lost {
            entry.returned += 1;
            self.give_back(entry, signals);
        }
    }

    /// Takes up to `max` ready messages out.
    pub(crate) fn take(&mut self, max: usize, taken: &mut Vec<Entry>) {
        while taken.len() < max
            && let Some((_, entry)) = self.given_back.pop_first()
        {
            taken.push(entry);
        }
        let count = self.ready.len().min(max - taken.len());
        taken.extend(self.ready.drain(..count));
    }

    /// Notes a lease that ends then. Nobody needs to learn of it: the message, when it became ready,
    /// has woken whoever waited.
    pub(crate) fn lease(&mut self, end: Instant) {
        if self.earliest_lease_end.is_none_or(|earliest| end < earliest) {
            self.earliest_lease_end = Some(end);
        }
    }

    /// When the next message becomes ready by itself, at the earliest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let due = self.delayed.first_key_value().map(|((due, _), _)| *due);
        due.into_iter().chain(self.earliest_lease_end).min()
    }

    /// Adds a consumer; answers what the group knows it by.
    pub(crate) fn join(&mut self, in_flight: Arc<InFlight>) -> u64 {
        self.in_flight.push(in_flight);
        self.next_consumer += 1;
        self.next_consumer
    }

    /// Forgets a consumer; what it was handed stays in flight.
    pub(crate) fn leave(
        &mut self,
        consumer: u64,
        in_flight: &Arc<InFlight>,
        signals: &mut Signals,
    ) {
        let left = self.waiting.extract_if(.., |(waiting, _)| *waiting == consumer);
        signals.wake(left.map(|(_, waker)| waker));
        if in_flight.leave(signals) {
            self.in_flight.retain(|known| !Arc::ptr_eq(known, in_flight));
        }
    }

    /// Remembers a consumer that found nothing; once, however often it looks.
    pub(crate) fn wait(&mut self, consumer: u64, waker: &Waker, signals: &mut Signals) {
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == consumer) {
            Some((_, known)) if known.will_wake(waker) => {}
            Some((_, known)) => signals.wake([std::mem::replace(known, waker.clone())]),
            None => self.waiting.push((consumer, waker.clone())),
        }
    }

    /// Wakes all consumers that wait.
    pub(crate) fn wake(&mut self, signals: &mut Signals) {
        signals.wake(self.waiting.drain(..).map(|(_, waker)| waker));
    }

    pub(crate) fn depth(&self, now: Instant) -> Depth {
        let held = || self.lanes.iter().flat_map(Lanes::iter);
        let is_delayed = |due: Option<Instant>| due.is_some_and(|due| due > now);
        let delayed = self.delayed.len() + held().filter(|(_, due)| is_delayed(*due)).count();
        let held_ready = held().filter(|(_, due)| !is_delayed(*due)).map(|(entry, _)| entry);
        let ready = self.ready.iter().chain(self.given_back.values()).chain(held_ready);
        let oldest = ready.map(|entry| entry.since).min();
        let in_flight = self.in_flight.iter().map(|in_flight| in_flight.lock().len()).sum();
        let count = |count: usize| u64::try_from(count).ok();

        let mut depth = Depth::default();
        depth.ready = count(self.backlog() - delayed);
        depth.in_flight = count(in_flight);
        depth.delayed = count(delayed);
        depth.dead_lettered = count(self.dead_letters.len());
        depth.oldest = oldest.map(|since| now - since);
        depth
    }
}

impl From<&Subscription> for Shape {
    fn from(subscription: &Subscription) -> Self {
        let partitions = subscription.destination().partition_count();
        Self { ordered: subscription.is_ordered(), partitions }
    }
}
