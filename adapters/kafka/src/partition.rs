use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anybroker_core::adapter::LONGEST_ALONE;
use anybroker_core::{Envelope, Hop, now};

use crate::clerk::COMMIT_INTERVAL;
use crate::position::Position;
use crate::trial::{Permit, Trial};

/// A message as it is kept until it is finished, to be handed out again.
pub(crate) type Kept = (Arc<Envelope>, Option<Box<Hop>>);

/// One partition for as long as it is assigned: which messages were read, handed out, finished.
///
/// Everything below its first unfinished message is committed; what is finished beyond that stands
/// in the commit's metadata.
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about a partition")]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) id: u16,
    /// Whether what is given back keeps its place before all later ones.
    in_place: bool,
    /// From the first unfinished message on, by offset.
    slots: VecDeque<Slot>,
    /// One past the last that was read.
    next: i64,
    /// What the owner before had finished ahead, and how often messages had come back.
    skip: VecDeque<(i64, i64)>,
    returned: BTreeMap<i64, u32>,
    /// Where it begins; unfinished messages below its `suspects` are to be handed out alone.
    begin: Position,
    /// Offsets below may be handed out: that they may be is committed.
    reserved: i64,
    reservation: (i64, Instant),
    fresh: VecDeque<i64>,
    again: BTreeSet<i64>,
    suspects: BTreeSet<i64>,
    trial: Trial,
    due: BinaryHeap<Reverse<(SystemTime, i64)>>,
    /// How many are handed out.
    pub(crate) out: usize,
    /// In order, the consumer that holds all that is handed out.
    pub(crate) seat: Option<u32>,
    /// Whether there is something to commit.
    pub(crate) dirty: bool,
    pub(crate) paused: bool,
    /// Whether it is about to be another's: nothing more is handed out.
    pub(crate) leaving: bool,
    /// Whether messages are kept back here until they are due. What another group delays is on the
    /// topic itself: the worker sees to it.
    is_retry: bool,
    /// After how many deliveries a message is given up.
    limit: Option<u32>,
}

struct Slot {
    offset: i64,
    returned: u32,
    state: State,
    message: Option<Kept>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Out(u32),
    Done,
}

/// The first number of offsets that are reserved at once, and the largest.
const RESERVATION: (i64, i64) = (64, 1 << 16);
/// A reservation used up faster is too small: it is renewed when half of it is left.
const BUSY: Duration = COMMIT_INTERVAL.saturating_mul(2);

impl Partition {
    /// Takes over where the owner before left; `high` is the end of the log.
    pub(crate) fn new(
        (topic, number, id): (Arc<str>, i32, u16),
        position: Position,
        high: i64,
        (ordered, is_retry, limit): (bool, bool, Option<u32>),
    ) -> Self {
        let Position { offset, open, suspects, witnesses, until, out, done, returned, .. } =
            position;
        let topic_id = position.topic_id;
        let mut begin = Position { offset, suspects, witnesses, topic_id, ..Position::default() };
        if open {
            begin.suspects = suspects.max(witnesses.min(until));
            // What came after the crash was not dispatched before it.
            begin.witnesses = until.min(high).max(witnesses);
        }
        let dispatched = |place| open && place >= suspects && place < until;
        let counted = |(place, count)| (place, count + u32::from(dispatched(place)));
        Self {
            topic,
            number,
            id,
            in_place: ordered && !is_retry,
            slots: VecDeque::new(),
            next: offset,
            skip: done.into(),
            returned: returned.into_iter().map(counted).collect(),
            begin,
            reserved: offset,
            reservation: (RESERVATION.0, Instant::now()),
            fresh: VecDeque::new(),
            again: BTreeSet::new(),
            suspects: BTreeSet::new(),
            trial: if open { Trial::after_crash(out) } else { Trial::default() },
            due: BinaryHeap::new(),
            out: 0,
            seat: None,
            dirty: false,
            paused: false,
            leaving: false,
            is_retry,
            limit,
        }
    }

    /// The offset behind the last that was read.
    pub(crate) fn next_read(&self) -> i64 {
        self.next
    }

    /// Takes a message in that was read.
    pub(crate) fn read(&mut self, offset: i64, (envelope, hop): Kept) {
        if offset < self.next {
            return;
        }
        self.next = offset + 1;
        self.dirty = true;
        while self.skip.front().is_some_and(|(_, end)| *end <= offset) {
            self.skip.pop_front();
        }
        if self.skip.front().is_some_and(|(start, _)| *start <= offset) {
            if !self.slots.is_empty() {
                self.slots.push_back(Slot {
                    offset,
                    returned: 0,
                    state: State::Done,
                    message: None,
                });
            }
            return;
        }
        let due = hop.as_ref().and_then(|hop| hop.not_before).filter(|due| *due > now());
        let returned = self.returned.remove(&offset);
        // It may have been dispatched when a process ended. One that is not due yet was not.
        let possible = || if due.is_some() { 0 } else { self.possible(offset, hop.as_deref()) };
        let returned = returned.unwrap_or_else(possible);
        let message = Some((envelope, hop));
        self.slots.push_back(Slot { offset, returned, state: State::Waiting, message });
        match due {
            Some(due) if self.is_retry => self.due.push(Reverse((due, offset))),
            _ if offset < self.begin.suspects => {
                self.suspects.insert(offset);
            }
            _ => self.fresh.push_back(offset),
        }
    }

    /// Goes on from this offset: there is nothing to read before it.
    pub(crate) fn pass_to(&mut self, offset: i64) {
        self.next = self.next.max(offset);
        self.dirty = true;
    }

    /// How often a message may have come back of which the commit says nothing: nobody is given up
    /// for what is only possible.
    fn possible(&self, offset: i64, hop: Option<&Hop>) -> u32 {
        let attempts = hop.map_or(0, |hop| hop.attempts);
        let spare =
            self.limit.map_or(u32::MAX, |limit| limit.saturating_sub(attempts.saturating_add(1)));
        self.begin.may_have_returned(offset).min(spare)
    }

    /// Makes ready what is due; answers when the next one is.
    pub(crate) fn advance(&mut self) -> Option<SystemTime> {
        self.trial.end_after(LONGEST_ALONE);
        let now = self.due.peek().map(|_| now())?;
        while let Some(Reverse((due, offset))) = self.due.peek().copied() {
            if due > now {
                return Some(due);
            }
            self.due.pop();
            if self.slot(offset).is_some_and(|slot| slot.state == State::Waiting) {
                self.place(offset);
            }
        }
        None
    }

    fn place(&mut self, offset: i64) {
        let ready = if offset < self.begin.suspects { &mut self.suspects } else { &mut self.again };
        ready.insert(offset);
    }

    /// The message that is to be handed out next, suspects apart.
    fn candidate(&self) -> Option<i64> {
        if self.leaving || !self.suspects.is_empty() || (self.in_place && !self.due.is_empty()) {
            return None;
        }
        self.again.first().or(self.fresh.front()).copied()
    }

    /// Whether the next message must be reserved before.
    pub(crate) fn needs_reservation(&self) -> bool {
        self.candidate().is_some_and(|offset| offset >= self.reserved)
    }

    /// The offset to reserve up to, when less than half of what was reserved is left.
    pub(crate) fn reservation(&mut self) -> Option<i64> {
        let next = self.candidate()?;
        let (size, since) = self.reservation;
        if self.reserved - next >= size / 2 {
            return None;
        }
        // It was used up before a commit that was due anyway could renew it.
        let size = if next >= self.reserved && since.elapsed() < BUSY { size * 2 } else { size };
        self.reservation = (size.min(RESERVATION.1), Instant::now());
        Some(next + self.reservation.0)
    }

    /// States that its position is committed, and how far messages may be handed out.
    pub(crate) fn committed(&mut self, until: Option<i64>) {
        self.dirty = false;
        self.reserved = self.reserved.max(until.unwrap_or(self.reserved));
    }

    /// Hands the next message out; answers it, with how often it came back.
    pub(crate) fn take(&mut self, seat: u32) -> Option<(i64, u32, Kept)> {
        let offset = self.candidate().filter(|offset| *offset < self.reserved)?;
        if !self.again.remove(&offset) {
            self.fresh.pop_front();
        }
        self.hand_out(offset, seat)
    }

    /// The suspects that may be tried together now, in at most so many places; and whether the run
    /// decides that a message is given up, so that no other suspect of the process may be beside it.
    pub(crate) fn next_trial(&self, room: usize) -> Option<(Vec<i64>, bool)> {
        // In order, one that waits for its time holds back the others.
        let open = !self.leaving && (!self.in_place || self.due.is_empty());
        if !open || self.is_tried() {
            return None;
        }
        let first = *self.suspects.first()?;
        let mut together = Vec::new();
        let mut most = room.min(self.trial.most());
        for offset in self.suspects.iter().copied() {
            // So many that halves of them, crash after crash, end with one before its last run.
            most = most.min(1 << (self.runs_left(offset).clamp(1, 32) - 1));
            if together.len() >= most {
                break;
            }
            together.push(offset);
        }
        (!together.is_empty()).then(|| (together, self.runs_left(first) <= 1))
    }

    /// How often a message may be handed out still.
    fn runs_left(&self, offset: i64) -> u32 {
        let Some(limit) = self.limit else { return u32::MAX };
        let slot = self.slots.binary_search_by_key(&offset, |slot| slot.offset);
        let used = slot.map_or(0, |index| {
            let slot = &self.slots[index];
            let hop = slot.message.as_ref().and_then(|(_, hop)| hop.as_deref());
            slot.returned.saturating_add(hop.map_or(0, |hop| hop.attempts))
        });
        limit.saturating_sub(used)
    }

    /// Hands suspects out together.
    pub(crate) fn start_trial(
        &mut self,
        offsets: &[i64],
        permit: Permit,
        seat: u32,
    ) -> Vec<(i64, u32, Kept)> {
        let mut taken = Vec::with_capacity(offsets.len());
        for offset in offsets {
            self.suspects.remove(offset);
            taken.extend(self.hand_out(*offset, seat));
        }
        self.trial.start(taken.iter().map(|(offset, ..)| *offset), permit);
        taken
    }

    /// Takes suspects back that were not handed out after all.
    pub(crate) fn cancel_trial(&mut self, offsets: &[i64]) {
        self.trial.cancel();
        for offset in offsets {
            self.give_back(*offset, Duration::ZERO, |returned| returned);
        }
    }

    /// Whether suspects are handed out: nothing else of the partition is, beside them.
    pub(crate) fn is_tried(&self) -> bool {
        self.trial.is_running()
    }

    /// Whether suspects wait to be tried, or for the end of a trial.
    pub(crate) fn has_suspects(&self) -> bool {
        self.is_tried() || (!self.leaving && !self.suspects.is_empty())
    }

    fn hand_out(&mut self, offset: i64, seat: u32) -> Option<(i64, u32, Kept)> {
        let slot = self.slot(offset)?;
        slot.state = State::Out(seat);
        let taken = (offset, slot.returned, slot.message.clone()?);
        self.out += 1;
        self.dirty = true;
        Some(taken)
    }

    /// Takes out the first message if it waits for its time, and many behind it are finished: all
    /// of them would have to be remembered until then.
    pub(crate) fn take_laggard(&mut self, many: usize, seat: u32) -> Option<(i64, u32, Kept)> {
        let first = self.slots.front().filter(|_| self.is_retry && !self.leaving)?;
        let (offset, waits) = (first.offset, first.state == State::Waiting);
        let waits = waits && self.due.iter().any(|Reverse((_, due))| *due == offset);
        (waits && self.slots.len() > many).then(|| self.hand_out(offset, seat)).flatten()
    }

    fn slot(&mut self, offset: i64) -> Option<&mut Slot> {
        // Mostly offsets have no gaps, and it is found where it must be.
        let first = self.slots.front()?.offset;
        let guess = usize::try_from(offset - first).ok()?;
        let index = match self.slots.get(guess) {
            Some(slot) if slot.offset == offset => guess,
            _ => self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()?,
        };
        self.slots.get_mut(index)
    }

    /// Who was handed the message, if it is out.
    fn returned_by(&mut self, offset: i64) -> Option<(&mut Slot, u32)> {
        let slot = self.slot(offset)?;
        let State::Out(seat) = slot.state else { return None };
        Some((slot, seat))
    }

    /// Finishes a message; answers who held it.
    pub(crate) fn finish(&mut self, offset: i64) -> Option<u32> {
        let (slot, seat) = self.returned_by(offset)?;
        (slot.state, slot.message) = (State::Done, None);
        self.let_go(offset);
        while self.slots.front().is_some_and(|slot| slot.state == State::Done) {
            self.slots.pop_front();
        }
        Some(seat)
    }

    /// Takes a message back, to be handed out again after a while; answers who held it.
    ///
    /// `returned` says how often it came back, given how often it had.
    pub(crate) fn give_back(
        &mut self,
        offset: i64,
        after: Duration,
        returned: impl FnOnce(u32) -> u32,
    ) -> Option<u32> {
        let (slot, seat) = self.returned_by(offset)?;
        slot.state = State::Waiting;
        slot.returned = returned(slot.returned);
        self.let_go(offset);
        match now().checked_add(after).filter(|_| !after.is_zero()) {
            Some(due) => self.due.push(Reverse((due, offset))),
            None => self.place(offset),
        }
        Some(seat)
    }

    fn let_go(&mut self, offset: i64) {
        self.trial.finished(offset);
        self.out -= 1;
        self.dirty = true;
        if self.out == 0 {
            self.seat = None;
        }
    }

    /// How many are in memory to be handed out, and how many places are taken.
    pub(crate) fn size(&self) -> (usize, usize) {
        let waiting = self.fresh.len() + self.again.len() + self.suspects.len();
        (waiting + self.due.len(), self.slots.len())
    }

    /// How many can be handed out as soon as there is room.
    pub(crate) fn ready(&self) -> usize {
        self.fresh.len() + self.again.len()
    }

    /// Whether what is ready has to wait for something else than room.
    pub(crate) fn is_held_back(&self) -> bool {
        self.ready() > 0 && self.candidate().is_none()
    }

    /// Holders of what is handed out.
    pub(crate) fn holders(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter_map(|slot| match slot.state {
            State::Out(seat) => Some(seat),
            _ => None,
        })
    }

    /// What is to be committed while at work, with offsets reserved up to `until`.
    pub(crate) fn position(&self, until: Option<i64>) -> Position {
        let offset = self.slots.front().map_or(self.next, |slot| slot.offset);
        let mut position = Position {
            offset,
            open: true,
            suspects: self.begin.suspects.max(offset),
            witnesses: self.begin.witnesses.max(offset),
            out: i64::try_from(self.out).unwrap_or(0),
            until: until.unwrap_or(self.reserved).max(offset),
            topic_id: self.begin.topic_id.clone(),
            ..Position::default()
        };
        let mut previous_done = false;
        for slot in &self.slots {
            let done = slot.state == State::Done;
            match position.done.last_mut() {
                // Offsets between two finished ones are none, or finished.
                Some((_, end)) if done && previous_done => *end = slot.offset + 1,
                _ if done => position.done.push((slot.offset, slot.offset + 1)),
                _ => {
                    let is_suspect = slot.offset < self.begin.suspects;
                    let alone = is_suspect && slot.state != State::Waiting;
                    let returned = slot.returned + u32::from(alone);
                    // What the next owner would take it for needs no word.
                    let hop = slot.message.as_ref().and_then(|(_, hop)| hop.as_deref());
                    if returned != self.possible(slot.offset, hop) {
                        position.returned.push((slot.offset, returned));
                    }
                }
            }
            previous_done = done;
        }
        let unread =
            |(start, end): &(i64, i64)| (*end > self.next).then(|| (*start.max(&self.next), *end));
        position.done.extend(self.skip.iter().filter_map(unread));
        position.returned.extend(self.returned.iter().map(|(offset, count)| (*offset, *count)));
        position
    }

    /// What is to be committed at the end: the next owner knows what was dispatched.
    pub(crate) fn last_position(&self) -> Position {
        let mut position = self.position(Some(0));
        let last = self.slots.iter().rev().find(|slot| matches!(slot.state, State::Out(_)));
        position.open = last.is_some();
        position.out = 0;
        position.until = last.map_or(position.offset, |slot| slot.offset + 1);
        // Of what was dispatched the next owner counts one return more; some are counted already.
        let again = position.suspects..position.until;
        for (offset, count) in &mut position.returned {
            let slot = self.slots.binary_search_by_key(offset, |slot| slot.offset);
            let waits = slot.is_ok_and(|index| self.slots[index].state == State::Waiting);
            *count = count.saturating_sub(u32::from(waits && again.contains(offset)));
        }
        position
    }
}

#[cfg(test)]
mod tests;
