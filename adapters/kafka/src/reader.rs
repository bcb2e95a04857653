use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anybroker_core::{Confirmation, Error, ErrorKind, Hop, Result, RetryClass, now};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::Clients;
use crate::commands::{Commands, Seat, tag};
use crate::desk::{Desk, commits};
use crate::error::{code, error_of, failed};
use crate::membership::{GroupContext, GroupSettings};
use crate::partition::Partition;
use crate::publish::{Record, Settlement, Waiting};
use crate::topology::ANSWER;

/// How often finished messages are committed.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long the client is not asked while there is no room: it may have a rebalance to tell.
const GLANCE: Duration = Duration::from_millis(100);

/// A partition with more places taken than this, or more messages in memory, is not read further.
const MOST_PLACES: usize = 100_000;
const MOST_WAITING: usize = 10_000;

/// Holds what is moved on.
const NOBODY: u32 = u32::MAX;

/// How many messages are read before the consumers get theirs.
const LOT: usize = 1024;

/// Starts the thread that reads for a group, with its first consumer.
pub(crate) fn start(
    clients: &Clients,
    group: GroupSettings,
    seat: Seat,
    commands: Arc<Commands>,
) -> Result<()> {
    let options = clients.member(&group.names.group);
    let options: Vec<_> = options.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut desk = Desk::new(group.ordered, Arc::clone(&group.permit));
    desk.seats.push(seat);
    let topics = [group.names.topic.clone(), group.names.retry.clone()];
    let context = GroupContext {
        group,
        desk: Mutex::new(desk),
        commands: Arc::clone(&commands),
        next_assignment: AtomicU16::new(0),
        failure: Mutex::new(None),
        token: clients.settings.token.clone(),
    };
    let mut consumer: BaseConsumer<GroupContext> = clients.create(&options, context, "consume")?;
    let woken = Arc::clone(&commands);
    consumer.set_nonempty_callback(move || woken.wake());
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(|error| failed("consume", "joining the group", error))?;
    let name = format!("anybroker {}", consumer.context().group.names.group);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || Reader { consumer, commands }.run())
        .map(drop)
        .map_err(|error| {
            error_of(ErrorKind::Broker, "consume", "no thread could be started").with_source(error)
        })
}

struct Reader {
    consumer: BaseConsumer<GroupContext>,
    commands: Arc<Commands>,
}

impl Reader {
    fn run(self) {
        self.commands.started();
        let _ended = self.commands.announce_end();
        let failure = self.work();
        self.commands.failed.store(failure.is_some(), Ordering::SeqCst);
        // What was settled until here counts; the last commit is made when the client gives its
        // partitions back.
        let Self { consumer, commands } = self;
        let context = Arc::clone(consumer.context());
        drop(consumer);
        commands.end();
        let mut desk = context.desk();
        if let Some(error) = failure {
            for seat in &desk.seats {
                let told = std::pin::pin!(seat.inbox.fail(error.again().operation("consume")));
                // An inbox has places left for this.
                let _ = told.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            }
        }
        desk.seats.clear();
        desk.flushes.clear();
    }

    /// Reads, hands out and commits, until the last consumer is gone or nothing can be read.
    fn work(&self) -> Option<Error> {
        let context = self.consumer.context();
        let mut commands = Vec::new();
        let mut committed = Instant::now();
        let mut glanced = Instant::now();
        loop {
            self.commands.take(&mut commands);
            let mut desk = context.desk();
            desk.apply(&mut commands);
            if self.commands.closing.load(Ordering::SeqCst) {
                return None;
            }
            if desk.seats.iter().all(|seat| seat.leaving) && desk.out() == 0 {
                drop(desk);
                if self.commands.end_if_idle() {
                    return None;
                }
                continue;
            }
            let window = desk.prefetch().max(64) * 2;
            let full = desk.ready() >= window;
            drop(desk);
            let mut count = 0;
            if !full || glanced.elapsed() >= GLANCE {
                glanced = Instant::now();
                count = match self.poll(if full { 1 } else { LOT }) {
                    Ok(count) => count,
                    Err(error) => return Some(error),
                };
            }
            if let Some(error) = context.take_failure() {
                return Some(error);
            }
            let mut desk = context.desk();
            let next_due = desk.advance();
            self.reserve(&mut desk);
            // Before the others, who would take every place again and again.
            if let Some(suspect) = desk.next_suspect() {
                desk.hand_out_suspect(suspect, |partition| {
                    self.commit(&commits([(partition, partition.position(None))]))
                });
            }
            desk.dispatch();
            self.limit(&mut desk, window);
            self.move_on(&mut desk);
            let done = desk.seats.iter().any(|seat| seat.leaving && seat.held == 0);
            let urgent = done || !desk.flushes.is_empty();
            if urgent || committed.elapsed() >= COMMIT_INTERVAL {
                committed = Instant::now();
                self.commit_finished(&mut desk, urgent);
                desk.seats.retain(|seat| !seat.leaving || seat.held > 0);
                for answer in desk.flushes.drain(..) {
                    // Who asked may be gone.
                    let _ = answer.send(());
                }
            }
            let still_full = desk.ready() >= window;
            let idle = if full { still_full } else { count < LOT };
            let suspects = desk.has_suspects();
            let batch = (desk.prefetch() / 8).clamp(1, 128);
            drop(desk);
            if idle {
                let until_due = next_due.map_or(GLANCE, |due| {
                    due.duration_since(now()).unwrap_or_default().min(GLANCE)
                });
                let time = match (still_full, suspects) {
                    // Room is made by the message, and waking for each would cost more than it.
                    (true, _) if batch > 1 => Duration::from_millis(1),
                    (_, true) => Duration::from_millis(5),
                    _ => until_due,
                };
                self.commands.sleep(time.min(until_due), if still_full { batch } else { 1 });
            }
        }
    }

    /// Reads up to so many messages; answers how many there were.
    ///
    /// # Errors
    /// What cannot be mended: offsets that are gone, rights that are missing.
    fn poll(&self, most: usize) -> Result<usize> {
        let context = self.consumer.context();
        let mut count = 0;
        let mut before = true;
        while count < most {
            let polled = self.consumer.poll(Duration::ZERO);
            let some = polled.is_some();
            match polled {
                // The client answers the same for what it saw to itself.
                None if !before => break,
                None => {}
                Some(Ok(message)) => context.read(&message),
                Some(Err(error)) => self.failed(error)?,
            }
            before = some;
            count += usize::from(some);
        }
        Ok(count)
    }

    fn failed(&self, error: KafkaError) -> Result<()> {
        let group = &self.consumer.context().group.names.group;
        match code(&error) {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                Err(self.gone(error))
            }
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::InconsistentGroupProtocol
                | RDKafkaErrorCode::InvalidSessionTimeout
                | RDKafkaErrorCode::UnsupportedFeature
                | RDKafkaErrorCode::UnsupportedVersion
                | RDKafkaErrorCode::NotImplemented
                | RDKafkaErrorCode::Fatal,
            ) => Err(failed("consume", &format!("group {group:?}"), error)),
            _ => {
                tracing::debug!(%error, group, "reading failed; the client tries again");
                Ok(())
            }
        }
    }

    /// The error that says which messages are gone.
    fn gone(&self, error: KafkaError) -> Error {
        let desk = self.consumer.context().desk();
        let mut lost = String::new();
        for partition in &desk.partitions {
            let position = partition.position(None).offset;
            let Ok((low, high)) =
                self.consumer.fetch_watermarks(&partition.topic, partition.number, ANSWER)
            else {
                continue;
            };
            if position < low || position > high {
                lost = format!(
                    "partition {} of topic {:?} keeps the offsets from {low} to {high}, and the group has handled those before {position}",
                    partition.number, partition.topic
                );
            }
        }
        let group = &self.consumer.context().group.names.group;
        let text = format!(
            "messages of group {group:?} are gone that it had not handled: {lost}; raise the topic's retention, and to go on without them reset the group's offsets (kafka-consumer-groups --reset-offsets)"
        );
        error_of(ErrorKind::NotFound, "consume", text)
            .class(RetryClass::Permanent)
            .with_source(error)
    }

    /// Makes known that messages are about to be handed out, before they are.
    fn reserve(&self, desk: &mut Desk) {
        if !desk.can_hand_out() || !desk.partitions.iter().any(Partition::needs_reservation) {
            return;
        }
        let mut reserved = Vec::new();
        for (index, partition) in desk.partitions.iter_mut().enumerate() {
            if partition.needs_reservation() {
                reserved.push((index, partition.reservation()));
            }
        }
        let list = commits(reserved.iter().map(|(index, until)| {
            let partition = &desk.partitions[*index];
            (partition, partition.position(Some(*until)))
        }));
        if self.commit(&list) {
            for (index, until) in reserved {
                desk.partitions[index].reserve(until);
            }
        }
    }

    /// Commits, and waits for it: the client does not tell what became of others, and may repeat
    /// them after later ones.
    fn commit(&self, list: &TopicPartitionList) -> bool {
        match self.consumer.commit(list, CommitMode::Sync) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, group = self.consumer.context().group.names.group, "a commit failed");
                false
            }
        }
    }

    fn commit_finished(&self, desk: &mut Desk, all: bool) {
        let changed: Vec<_> =
            desk.partitions.iter().filter(|partition| partition.dirty || all).collect();
        if changed.is_empty() {
            return;
        }
        let list =
            commits(changed.into_iter().map(|partition| (partition, partition.position(None))));
        if self.commit(&list) {
            for partition in &mut desk.partitions {
                partition.dirty = false;
            }
        }
    }

    /// Stores messages anew that wait for their time and hold up too many others' commit.
    fn move_on(&self, desk: &mut Desk) {
        let group = &self.consumer.context().group;
        for partition in &mut desk.partitions {
            if *partition.topic != *group.names.retry {
                continue;
            }
            let laggard = partition.take_laggard(MOST_PLACES / 4, NOBODY);
            let Some((offset, returned, (envelope, hop))) = laggard else { continue };
            let mut hop = hop.map_or_else(Hop::default, |hop| *hop);
            hop.attempts += returned;
            let settlement = Settlement {
                tag: tag(partition.id, offset),
                commands: Arc::clone(&self.commands),
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
        let flooded = desk.ready() > 4 * window;
        for partition in &mut desk.partitions {
            let (waiting, places) = partition.size();
            let most = if partition.paused { 2 } else { 1 };
            let too_many = waiting > MOST_WAITING / most || places > MOST_PLACES / most;
            // What waits for its time takes nobody's turn, and does not keep others from being read.
            let ready = partition.ready();
            let pause = too_many || (flooded && ready > 0) || (partition.paused && ready > window);
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
