use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anybroker_core::{Confirmation, Error, Hop, now};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Message, TopicPartitionList};

use crate::arrivals::{Arrival, Arrivals, What};
use crate::commands::{Commands, tag};
use crate::desk::{Desk, commits};
use crate::membership::GroupContext;
use crate::publish::{Record, Settlement, Waiting};

/// How often finished messages are committed.
pub(crate) const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// A partition with more places taken than this, or more messages in memory, is not read further.
const MOST_PLACES: usize = 100_000;
const MOST_WAITING: usize = 10_000;

/// How many messages are read before others are handed out.
const LOT: usize = 256;

/// Holds what is moved on.
const NOBODY: u32 = u32::MAX;

/// The thread at a group's desk: takes in what was read and what was settled, hands out, commits.
///
/// Another one reads ([`Reader`](crate::reader)), which would stop for each commit. What they share
/// is the desk: whoever changes it holds its lock, for as long as the broker is told of it.
pub(crate) struct Clerk<'a> {
    pub(crate) consumer: &'a BaseConsumer<GroupContext>,
    pub(crate) commands: &'a Arc<Commands>,
    pub(crate) arrivals: &'a Arrivals<Arrival<'a>>,
}

impl Clerk<'_> {
    /// Hands out and commits, until the last consumer is gone or nothing can be read.
    pub(crate) fn work(&self) -> Option<Error> {
        let context = self.consumer.context();
        let (mut arrived, mut read) = (VecDeque::new(), Vec::with_capacity(LOT));
        let mut spent = Vec::with_capacity(LOT);
        let mut committed = Instant::now();
        loop {
            self.arrivals.take(&mut arrived);
            for Arrival { assignment, what } in arrived.drain(..LOT.min(arrived.len())) {
                match what {
                    What::Message(message) => {
                        let kept = Some(context.read(&message));
                        read.push((assignment, message.offset(), kept));
                        spent.push(message);
                    }
                    What::Gap(end) => read.push((assignment, end, None)),
                }
            }
            // Together: each takes a lock that the client's thread needs for what it reads.
            spent.clear();
            let mut desk = context.desk();
            desk.apply(self.commands);
            let ended = self.arrivals.ended();
            if let Some(error) = context.take_failure() {
                return Some(error);
            }
            if ended || self.commands.closing.load(Ordering::SeqCst) {
                return None;
            }
            if desk.seats.iter().all(|seat| seat.leaving) && desk.out() == 0 {
                // With the desk in hand, so that nobody puts a new consumer there meanwhile.
                if self.commands.end_if_idle() {
                    return None;
                }
                continue;
            }
            desk.read(read.drain(..));
            let next_due = desk.advance();
            let flush = !desk.flushes.is_empty() || desk.has_left();
            let reserve = desk.can_hand_out() && desk.needs_reservation();
            if flush || reserve || committed.elapsed() >= COMMIT_INTERVAL {
                committed = Instant::now();
                self.commit_positions(&mut desk, flush);
                desk.seats.retain(|seat| !seat.leaving || seat.held > 0);
                for answer in desk.flushes.drain(..) {
                    // Who asked may be gone.
                    let _ = answer.send(());
                }
            }
            // Before the others, who would take every place again and again.
            desk.try_suspects(|partition| {
                self.commit(&commits([(partition, partition.position(None))]))
            });
            desk.dispatch();
            let window = desk.prefetch().max(64);
            self.arrivals.report(desk.waiting() + arrived.len(), window);
            self.limit(&mut desk, window);
            self.move_on(&mut desk);
            // Room is made by the message, and waking for each would cost more than it; while nobody
            // waits for it, what is finished is only to be committed.
            let batch = (desk.prefetch() / 8).clamp(1, 128);
            let leaving = desk.seats.iter().any(|seat| seat.leaving);
            let (time, batch) = if desk.has_suspects() {
                (Duration::from_millis(5), 1)
            } else if desk.can_hand_out() && desk.needs_reservation() {
                // What was reserved is used up.
                (Duration::from_millis(1), 1)
            } else if desk.ready() > 0 && !desk.can_hand_out() && batch > 1 {
                (Duration::from_millis(1), batch)
            } else if desk.ready() > 0 || leaving {
                (COMMIT_INTERVAL, 1)
            } else {
                (COMMIT_INTERVAL, usize::MAX)
            };
            drop(desk);
            if !arrived.is_empty() {
                continue;
            }
            let due = next_due.map(|due| due.duration_since(now()).unwrap_or_default());
            self.commands.sleep(due.map_or(time, |due| due.min(time)), batch);
        }
    }

    /// Commits, and waits for it: the client does not tell what became of others, and may repeat
    /// them after later ones.
    fn commit(&self, list: &TopicPartitionList) -> bool {
        // Others go on from what they committed since: an older position must not replace it.
        if self.consumer.assignment_lost() {
            return false;
        }
        match self.consumer.commit(list, CommitMode::Sync) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, group = self.consumer.context().group.names.group, "a commit failed");
                false
            }
        }
    }

    /// Commits what is finished, and how far messages may be handed out, before they are.
    fn commit_positions(&self, desk: &mut Desk, all: bool) {
        let changed: Vec<_> = desk
            .partitions
            .iter_mut()
            .enumerate()
            .filter(|(_, partition)| all || partition.dirty || partition.needs_reservation())
            .map(|(index, partition)| (index, partition.reservation()))
            .collect();
        if changed.is_empty() {
            return;
        }
        let list = commits(changed.iter().map(|(index, until)| {
            let partition = &desk.partitions[*index];
            (partition, partition.position(*until))
        }));
        if self.commit(&list) {
            for (index, until) in changed {
                desk.partitions[index].committed(until);
            }
        }
    }

    /// Stores messages anew that wait for their time and hold up too many others' commit.
    fn move_on(&self, desk: &mut Desk) {
        let group = &self.consumer.context().group;
        for partition in &mut desk.partitions {
            let laggard = partition.take_laggard(MOST_PLACES / 4, NOBODY);
            let Some((offset, returned, (envelope, hop))) = laggard else { continue };
            let mut hop = hop.map_or_else(Hop::default, |hop| *hop);
            hop.attempts += returned;
            let settlement = Settlement {
                tag: tag(partition.id, offset),
                commands: Arc::clone(self.commands),
                confirmer: Confirmation::channel().0,
                returned,
            };
            let waiting = Waiting::Settlement(settlement);
            let topic = Arc::clone(&partition.topic);
            group.publisher.send(Record::new(topic, envelope, hop, waiting));
        }
    }

    /// Stops to read partitions that hold too much, and goes on with those that do no more.
    fn limit(&self, desk: &mut Desk, window: usize) {
        let flooded = desk.waiting() > 4 * window;
        for index in 0..desk.partitions.len() {
            let held_back = desk.is_held_back(index);
            let partition = &mut desk.partitions[index];
            let (waiting, places) = partition.size();
            let most = if partition.paused { 2 } else { 1 };
            let too_many = waiting > MOST_WAITING / most || places > MOST_PLACES / most;
            // What waits for its time takes nobody's turn, and does not keep others from being read.
            let ready = partition.ready();
            let over = ready > window && (held_back || partition.paused);
            let pause = too_many || (flooded && ready > 0) || over;
            if pause == partition.paused {
                continue;
            }
            let mut list = TopicPartitionList::new();
            list.add_partition(&partition.topic, partition.number);
            let changed =
                if pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
            if changed.is_ok() {
                partition.paused = pause;
            }
        }
    }
}
