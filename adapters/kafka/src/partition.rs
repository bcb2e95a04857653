use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anybroker_core::{Envelope, Hop, now};

use crate::position::Position;

/// A message as it is kept until it is finished, to be handed out again.
pub(crate) type Kept = (Arc<Envelope>, Option<Box<Hop>>);

/// One partition for as long as it is assigned: which messages were read, handed out, finished.
///
/// Everything below its first unfinished message is committed; what is finished beyond that stands
/// in the commit's metadata.
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
    due: BinaryHeap<Reverse<(SystemTime, i64)>>,
    /// How many are handed out.
    pub(crate) out: usize,
    /// In order, the consumer that holds all that is handed out.
    pub(crate) seat: Option<u32>,
    /// Whether there is something to commit.
    pub(crate) dirty: bool,
    pub(crate) paused: bool,
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
/// A reservation used up faster is too small.
const BUSY: Duration = Duration::from_millis(100);

impl Partition {
    /// Takes over where the owner before left; `high` is the end of the log.
    pub(crate) fn new(
        (topic, number, id): (Arc<str>, i32, u16),
        position: Position,
        high: i64,
        (in_place, limit): (bool, Option<u32>),
    ) -> Self {
        let Position { offset, open, suspects, witnesses, until, done, returned, .. } = position;
        let mut begin = Position { offset, suspects, witnesses, ..Position::default() };
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
            in_place,
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
            due: BinaryHeap::new(),
            out: 0,
            seat: None,
            dirty: false,
            paused: false,
            limit,
        }
    }

    /// Takes a message in that was read; answers whether it is to be handed out.
    pub(crate) fn read(&mut self, offset: i64, (envelope, hop): Kept, keeps_delays: bool) -> bool {
        if offset < self.next {
            return false;
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
            return false;
        }
        let due = hop.as_ref().and_then(|hop| hop.not_before).filter(|due| *due > now());
        let returned = self.returned.remove(&offset).unwrap_or_else(|| {
            // It may have been dispatched when a process ended. One that is not due yet was not;
            // and nobody is given up for what is only possible.
            let attempts = hop.as_ref().map_or(0, |hop| hop.attempts);
            let spare = self.limit.map_or(2, |limit| limit.saturating_sub(attempts + 1));
            let possible = self.begin.may_have_returned(offset);
            if due.is_some() { 0 } else { possible.min(spare) }
        });
        let message = Some((envelope, hop));
        self.slots.push_back(Slot { offset, returned, state: State::Waiting, message });
        match due {
            Some(due) if keeps_delays => self.due.push(Reverse((due, offset))),
            _ if offset < self.begin.suspects => {
                self.suspects.insert(offset);
            }
            _ => self.fresh.push_back(offset),
        }
        true
    }

    /// Makes ready what is due; answers when the next one is.
    pub(crate) fn advance(&mut self) -> Option<SystemTime> {
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
        if !self.suspects.is_empty() || (self.in_place && !self.due.is_empty()) {
            return None;
        }
        self.again.first().or(self.fresh.front()).copied()
    }

    /// Whether the next message must be reserved before.
    pub(crate) fn needs_reservation(&self) -> bool {
        self.candidate().is_some_and(|offset| offset >= self.reserved)
    }

    /// The offset to reserve up to.
    pub(crate) fn reservation(&mut self) -> i64 {
        let (size, since) = self.reservation;
        if since.elapsed() < BUSY {
            self.reservation.0 = (size * 2).min(RESERVATION.1);
        }
        self.reservation.1 = Instant::now();
        self.candidate().unwrap_or(self.reserved) + self.reservation.0
    }

    /// States that the broker knows how far messages may be handed out.
    pub(crate) fn reserve(&mut self, until: i64) {
        self.reserved = self.reserved.max(until);
    }

    /// Hands the next message out; answers it, with how often it came back.
    pub(crate) fn take(&mut self, seat: u32) -> Option<(i64, u32, Kept)> {
        let offset = self.candidate().filter(|offset| *offset < self.reserved)?;
        if !self.again.remove(&offset) {
            self.fresh.pop_front();
        }
        self.hand_out(offset, seat)
    }

    /// The first suspect.
    pub(crate) fn suspect(&self) -> Option<i64> {
        // In order, one that waits for its time holds back the others.
        (!self.in_place || self.due.is_empty()).then(|| self.suspects.first().copied()).flatten()
    }

    /// Hands a suspect out.
    pub(crate) fn take_suspect(&mut self, offset: i64, seat: u32) -> Option<(i64, u32, Kept)> {
        self.suspects.remove(&offset);
        self.hand_out(offset, seat)
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
        let first = self.slots.front()?;
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
        self.let_go();
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
        self.let_go();
        match now().checked_add(after).filter(|_| !after.is_zero()) {
            Some(due) => self.due.push(Reverse((due, offset))),
            None => self.place(offset),
        }
        Some(seat)
    }

    fn let_go(&mut self) {
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
                    if returned != self.begin.may_have_returned(slot.offset) {
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
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: i64 = 1000;

    fn owner(position: Position, limit: Option<u32>) -> Partition {
        let mut partition = Partition::new(("t".into(), 0, 7), position, LOG, (false, limit));
        partition.reserve(LOG);
        partition
    }

    fn kept(hop: Hop) -> Kept {
        (Arc::new(Envelope::new("t", "")), (hop != Hop::default()).then(|| Box::new(hop)))
    }

    fn read(partition: &mut Partition, offsets: impl IntoIterator<Item = i64>) {
        for offset in offsets {
            partition.read(offset, kept(Hop::default()), true);
        }
    }

    /// Hands out all that may be; answers offsets, and how often each came back.
    fn take_all(partition: &mut Partition) -> Vec<(i64, u32)> {
        std::iter::from_fn(|| partition.take(1)).map(|(offset, count, _)| (offset, count)).collect()
    }

    /// What the next owner of the partition begins with.
    fn next_owner(partition: &Partition) -> Partition {
        let last = partition.last_position();
        owner(Position::read(last.offset, &last.metadata()), None)
    }

    #[test]
    fn only_the_finished_prefix_is_committed() {
        let mut partition = owner(Position::at(10), None);
        read(&mut partition, 10..16);
        take_all(&mut partition);
        for offset in [12, 11, 14] {
            partition.finish(offset);
        }
        let position = partition.position(None);
        assert_eq!((position.offset, &*position.done), (10, &[(11, 13), (14, 15)][..]));
        partition.finish(10);
        assert_eq!(partition.position(None).offset, 13);
        assert_eq!(partition.finish(10), None, "finished twice is finished once");
        partition.finish(13);
        partition.finish(15);
        assert_eq!(partition.position(None).offset, 16);
        assert_eq!(partition.out, 0);
    }

    #[test]
    fn offsets_that_are_no_message_hold_nothing_up() {
        let mut partition = owner(Position::at(10), None);
        read(&mut partition, [10, 12, 17]);
        take_all(&mut partition);
        partition.finish(12);
        partition.finish(17);
        assert_eq!(partition.position(None).done, [(12, 18)]);
        partition.finish(10);
        assert_eq!(partition.position(None).offset, 18);
    }

    #[test]
    fn the_next_owner_repeats_nothing_that_is_finished() {
        let mut first = owner(Position::at(10), None);
        read(&mut first, 10..20);
        take_all(&mut first);
        for offset in (10..20).filter(|offset| ![11, 15].contains(offset)) {
            first.finish(offset);
        }
        first.give_back(11, Duration::ZERO, |returned| returned);
        first.give_back(15, Duration::ZERO, |_| 3);
        assert!(!first.last_position().open);
        let mut second = next_owner(&first);
        // It has read some only when it lets go in turn.
        read(&mut second, 11..14);
        let mut third = next_owner(&second);
        read(&mut third, 11..22);
        assert_eq!(take_all(&mut third), [(11, 0), (15, 3), (20, 0), (21, 0)]);
    }

    #[test]
    fn what_was_out_at_one_end_may_have_come_back_and_at_two_runs_alone() {
        let mut first = owner(Position::at(10), None);
        read(&mut first, 10..14);
        for _ in 0..3 {
            first.take(1);
        }
        first.finish(11);
        let mut second = next_owner(&first);
        read(&mut second, 10..14);
        assert_eq!(take_all(&mut second), [(10, 1), (12, 1), (13, 0)]);
        let mut third = next_owner(&second);
        read(&mut third, 10..16);
        assert_eq!(take_all(&mut third), [], "the others wait for the suspects");
        assert_eq!(third.suspect(), Some(10));
        assert_eq!(third.take_suspect(10, 1).expect("it is there").1, 2);
        // The process dies with it: of the suspects it alone was handed out.
        let mut fourth = next_owner(&third);
        read(&mut fourth, 10..16);
        for (offset, returned) in [(10, 3), (12, 2)] {
            assert_eq!(fourth.suspect(), Some(offset));
            assert_eq!(fourth.take_suspect(offset, 1).expect("it is there").1, returned);
            fourth.finish(offset);
        }
        assert_eq!(take_all(&mut fourth), [(13, 1), (14, 0), (15, 0)]);
    }

    #[test]
    fn nobody_is_given_up_for_what_is_only_possible() {
        let open = Position { open: true, until: 12, ..Position::at(10) };
        let mut partition = owner(open, Some(5));
        let last_attempt = Hop { attempts: 4, ..Hop::default() };
        partition.read(10, kept(last_attempt), true);
        read(&mut partition, [11]);
        assert_eq!(take_all(&mut partition), [(10, 0), (11, 1)]);
    }

    #[test]
    fn nothing_is_handed_out_that_was_not_made_known() {
        let mut partition = Partition::new(("t".into(), 0, 7), Position::at(0), LOG, (false, None));
        read(&mut partition, 0..500);
        assert!(take_all(&mut partition).is_empty() && partition.needs_reservation());
        let until = partition.reservation();
        partition.reserve(until);
        assert_eq!(take_all(&mut partition).len(), usize::try_from(until).expect("a few"));
        assert!(partition.reservation() > 2 * until, "it grows where it is used up fast");
    }

    #[test]
    fn in_place_what_is_given_back_holds_back_the_others() {
        let mut partition = Partition::new(("t".into(), 0, 7), Position::at(0), LOG, (true, None));
        partition.reserve(LOG);
        read(&mut partition, 0..4);
        partition.take(1);
        partition.take(1);
        partition.give_back(0, Duration::from_hours(1), |returned| returned + 1);
        assert!(take_all(&mut partition).is_empty());
        partition.finish(1);
        assert!(take_all(&mut partition).is_empty(), "however long it takes");
    }

    #[test]
    fn what_waits_for_its_time_blocks_nobody_and_can_be_moved_on() {
        let mut partition = owner(Position::at(0), None);
        partition.read(0, kept(Hop::delayed(Duration::from_hours(1))), true);
        read(&mut partition, 1..20);
        assert_eq!(take_all(&mut partition).len(), 19);
        assert!(partition.advance().is_some());
        for offset in 1..20 {
            partition.finish(offset);
        }
        assert!(partition.take_laggard(20, 9).is_none(), "not many are behind it");
        assert_eq!(partition.take_laggard(10, 9).expect("it lags").0, 0);
        partition.finish(0);
        assert_eq!(partition.position(None).offset, 20);
    }
}
