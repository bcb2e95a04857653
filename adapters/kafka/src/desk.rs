use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anybroker_core::Delivery;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::commands::{Command, Commands, Seat, Settled, place, tag};
use crate::partition::{Kept, Partition};
use crate::position::Position;
use crate::trial::Court;

/// What a group's thread has in hand: its partitions, and the consumers it serves.
pub(crate) struct Desk {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) seats: Vec<Seat>,
    ordered: bool,
    /// Which partition comes first the next time.
    turn: usize,
    court: Court,
    pub(crate) flushes: Vec<tokio::sync::oneshot::Sender<()>>,
    taken: Vec<Command>,
}

/// How many messages of a partition go to one consumer before another one has its turn.
const LOT: usize = 32;

impl Desk {
    pub(crate) fn new(ordered: bool, court: Court) -> Self {
        Self {
            partitions: Vec::new(),
            seats: Vec::new(),
            ordered,
            turn: 0,
            court,
            flushes: Vec::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) fn partition(&mut self, id: u16) -> Option<&mut Partition> {
        self.partitions.iter_mut().find(|partition| partition.id == id)
    }

    fn seat(&mut self, number: u32) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.number == number)
    }

    /// Does what was commanded until now. Under the desk's lock, or what two threads took would be
    /// done in another order.
    pub(crate) fn apply(&mut self, commands: &Commands) {
        let mut taken = std::mem::take(&mut self.taken);
        commands.take(&mut taken);
        for command in taken.drain(..) {
            match command {
                Command::Settled(tag, settled) => self.settle(tag, settled),
                Command::Join(seat) => self.seats.push(*seat),
                Command::Leave(number) => {
                    if let Some(seat) = self.seat(number) {
                        seat.leaving = true;
                    }
                }
                Command::Flush(answer) => self.flushes.push(answer),
            }
        }
        self.taken = taken;
    }

    /// Takes in what was read; what was read for an assignment that ended is let go.
    pub(crate) fn read(&mut self, read: impl Iterator<Item = (u16, i64, Option<Kept>)>) {
        for (assignment, offset, message) in read {
            match (self.partition(assignment), message) {
                (Some(partition), Some(message)) => partition.read(offset, message),
                (Some(partition), None) => partition.pass_to(offset),
                (None, _) => {}
            }
        }
    }

    fn settle(&mut self, tag: u64, settled: Settled) {
        let (id, offset) = place(tag);
        let Some(partition) = self.partition(id) else { return };
        let holder = match settled {
            Settled::Finished => partition.finish(offset),
            Settled::GivenBack { returned, after } => {
                partition.give_back(offset, after, |_| returned)
            }
            Settled::Unseen => partition.give_back(offset, Duration::ZERO, |returned| returned),
            Settled::Dropped => {
                partition.give_back(offset, Duration::ZERO, |returned| returned.saturating_add(1))
            }
        };
        if let Some(seat) = holder.and_then(|number| self.seat(number)) {
            seat.held -= 1;
        }
    }

    /// How many deliveries are out.
    pub(crate) fn out(&self) -> usize {
        self.partitions.iter().map(|partition| partition.out).sum()
    }

    /// Whether a consumer that leaves has given all back.
    pub(crate) fn has_left(&self) -> bool {
        self.seats.iter().any(|seat| seat.leaving && seat.held == 0)
    }

    /// How many messages wait for room.
    pub(crate) fn ready(&self) -> usize {
        self.partitions.iter().map(Partition::ready).sum()
    }

    /// How many of them wait for nothing else: the others are no reason to read nothing more.
    pub(crate) fn waiting(&self) -> usize {
        let open = (0..self.partitions.len()).filter(|index| !self.is_held_back(*index));
        open.map(|index| self.partitions[index].ready()).sum()
    }

    /// Whether a partition waits while there is room: for its suspects, for what comes before it, or
    /// for the consumer that holds it.
    pub(crate) fn is_held_back(&self, index: usize) -> bool {
        let partition = &self.partitions[index];
        partition.is_tried()
            || partition.is_held_back()
            || partition.ready() > 0 && self.room() > 0 && self.place(index).is_none()
    }

    /// How many deliveries the consumers take at once.
    pub(crate) fn prefetch(&self) -> usize {
        self.seats.iter().filter(|seat| !seat.leaving).map(|seat| seat.prefetch).sum()
    }

    fn room(&self) -> usize {
        let room = |seat: &Seat| seat.prefetch.saturating_sub(seat.held);
        self.seats.iter().filter(|seat| !seat.leaving).map(room).sum()
    }

    /// Whether messages wait and there is room for them.
    pub(crate) fn can_hand_out(&self) -> bool {
        self.room() > 0 && self.ready() > 0
    }

    /// Makes ready what is due; answers when the next one is.
    pub(crate) fn advance(&mut self) -> Option<SystemTime> {
        self.partitions.iter_mut().filter_map(Partition::advance).min()
    }

    /// The consumer with the most room, or, in order, the one that holds the partition.
    fn place(&self, partition: usize) -> Option<usize> {
        let holder = self.partitions[partition].seat.filter(|_| self.ordered);
        let open = self.seats.iter().enumerate().filter(|(_, seat)| {
            !seat.leaving
                && seat.held < seat.prefetch
                && holder.is_none_or(|holder| holder == seat.number)
        });
        open.max_by_key(|(_, seat)| seat.prefetch - seat.held).map(|(index, _)| index)
    }

    /// Hands out what is reserved, for as long as there is room.
    pub(crate) fn dispatch(&mut self) {
        let count = self.partitions.len();
        let mut idle = 0;
        while idle < count {
            self.turn = (self.turn + 1) % count;
            let index = self.turn;
            idle += 1;
            let beside = self.partitions[index].is_tried();
            let Some(seat) = self.place(index).filter(|_| !beside) else { continue };
            let Self { partitions, seats, .. } = self;
            let (partition, seat) = (&mut partitions[index], &mut seats[seat]);
            for _ in 0..LOT.min(seat.prefetch - seat.held) {
                let Some(taken) = partition.take(seat.number) else { break };
                idle = 0;
                deliver(partition, seat, taken);
            }
        }
        self.seats.iter_mut().for_each(Seat::hand_over);
    }

    /// Hands suspects out, those of a partition together, where this can be committed before: so that
    /// the next owner knows what ran.
    pub(crate) fn try_suspects(&mut self, commit: impl Fn(&Partition) -> bool) {
        for index in 0..self.partitions.len() {
            if !self.partitions[index].has_suspects() {
                continue;
            }
            let Some(place) = self.place(index) else { continue };
            let Self { partitions, seats, court, .. } = self;
            let (partition, seat) = (&mut partitions[index], &mut seats[place]);
            let room = seat.prefetch - seat.held;
            let Some((offsets, decides)) = partition.next_trial(room) else { continue };
            let Some(permit) = court.permit(decides) else { continue };
            let taken = partition.start_trial(&offsets, permit, seat.number);
            if !commit(partition) {
                partition.cancel_trial(&offsets);
                continue;
            }
            for taken in taken {
                deliver(partition, seat, taken);
            }
            seat.hand_over();
        }
    }

    /// Whether a suspect waits, or is out: others may wait for its end.
    pub(crate) fn has_suspects(&self) -> bool {
        self.partitions.iter().any(Partition::has_suspects)
    }

    pub(crate) fn needs_reservation(&self) -> bool {
        self.partitions.iter().any(Partition::needs_reservation)
    }

    /// Takes partitions out that are another's now; what was out of them frees its places.
    pub(crate) fn remove(&mut self, ids: &[u16]) -> Vec<Partition> {
        let removed: Vec<_> =
            self.partitions.extract_if(.., |partition| ids.contains(&partition.id)).collect();
        let mut freed: HashMap<u32, usize> = HashMap::new();
        for holder in removed.iter().flat_map(Partition::holders) {
            *freed.entry(holder).or_default() += 1;
        }
        for seat in &mut self.seats {
            seat.held -= freed.get(&seat.number).copied().unwrap_or(0);
        }
        removed
    }
}

fn deliver(partition: &mut Partition, seat: &mut Seat, (offset, returned, kept): (i64, u32, Kept)) {
    partition.seat = Some(seat.number);
    seat.held += 1;
    let (envelope, hop) = kept;
    let tag = tag(partition.id, offset);
    seat.lot.push(Delivery::new(envelope, hop, returned, tag, seat.settler.clone()));
}

/// A list to commit.
pub(crate) fn commits<'a>(
    positions: impl IntoIterator<Item = (&'a Partition, Position)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, position) in positions {
        let mut element = list.add_partition(&partition.topic, partition.number);
        // Offsets from 0 are always taken.
        let _ = element.set_offset(rdkafka::Offset::Offset(position.offset));
        element.set_metadata(position.metadata());
    }
    list
}
