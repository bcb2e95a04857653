use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anybroker_core::{Confirmation, Error, ErrorKind, Hop, Result, RetryClass, now};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::client::{Clients, log, oauth_token};
use crate::commands::{Commands, Seat, tag};
use crate::desk::{Desk, commits};
use crate::error::{code, error_of, failed};
use crate::message::read;
use crate::names::Names;
use crate::options::TokenProvider;
use crate::partition::Partition;
use crate::position::Position;
use crate::publish::{Publisher, Record, Settlement, Waiting};

/// How often finished messages are committed.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long the client is not asked while there is no room: it may have a rebalance to tell.
const GLANCE: Duration = Duration::from_millis(100);

/// How long handlers may take to finish what they run when a partition goes to another process.
const HANDOVER: Duration = Duration::from_secs(10);

/// How long a question to the broker may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A partition with more places taken than this, or more messages in memory, is not read further.
const MOST_PLACES: usize = 100_000;
const MOST_WAITING: usize = 10_000;

/// Holds what is moved on.
const NOBODY: u32 = u32::MAX;

/// How many messages are read before the consumers get theirs.
const LOT: usize = 1024;

/// What a group's thread is set up with.
pub(crate) struct GroupSettings {
    pub(crate) names: Arc<Names>,
    pub(crate) default_type: String,
    pub(crate) ordered: bool,
    pub(crate) limit: Option<u32>,
    /// To move on what would be waited for.
    pub(crate) publisher: Arc<Publisher>,
    /// See [`Desk`].
    pub(crate) permit: Arc<AtomicBool>,
}

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
        uncommitted: AtomicBool::new(false),
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

/// What the client calls back, on the reader's own thread.
struct GroupContext {
    group: GroupSettings,
    desk: Mutex<Desk>,
    commands: Arc<Commands>,
    next_assignment: AtomicU16,
    /// Whether a commit failed that is to be made up for.
    uncommitted: AtomicBool,
    failure: Mutex<Option<Error>>,
    token: Option<TokenProvider>,
}

impl Reader {
    fn run(self) {
        self.commands.started();
        let failure = self.work();
        // What was settled until here counts; the last commit is made when the client gives its
        // partitions back.
        let Self { consumer, commands } = self;
        let context = Arc::clone(consumer.context());
        drop(consumer);
        commands.end();
        let mut desk = context.desk();
        if let Some(error) = failure {
            for seat in &desk.seats {
                let told = std::pin::pin!(seat.inbox.fail(crate::error::again(&error, "consume")));
                // An inbox has places left for this.
                let _ = told.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            }
        }
        desk.seats.clear();
        desk.flushes.clear();
        commands.announce_end();
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
            desk.dispatch();
            if let Some(suspect) = desk.next_suspect() {
                desk.hand_out_suspect(suspect, |partition| {
                    self.commit(&commits([(partition, partition.position(None))]), CommitMode::Sync)
                });
            }
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
        while count < most {
            match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => context.read(&message),
                Some(Err(error)) => self.failed(error)?,
            }
            count += 1;
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
        if self.commit(&list, CommitMode::Sync) {
            for (index, until) in reserved {
                desk.partitions[index].reserve(until);
            }
        }
    }

    fn commit(&self, list: &TopicPartitionList, mode: CommitMode) -> bool {
        match self.consumer.commit(list, mode) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, group = self.consumer.context().group.names.group, "a commit failed");
                false
            }
        }
    }

    fn commit_finished(&self, desk: &mut Desk, at_once: bool) {
        let again = self.consumer.context().uncommitted.swap(false, Ordering::SeqCst);
        let changed: Vec<_> = desk
            .partitions
            .iter()
            .filter(|partition| partition.dirty || again || at_once)
            .collect();
        if changed.is_empty() {
            return;
        }
        let list =
            commits(changed.into_iter().map(|partition| (partition, partition.position(None))));
        let mode = if at_once { CommitMode::Sync } else { CommitMode::Async };
        if self.commit(&list, mode) {
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
            let pause =
                too_many || (flooded && waiting > 0) || (partition.paused && waiting > window);
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

impl GroupContext {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn read(&self, message: &BorrowedMessage<'_>) {
        let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
        let (envelope, hop) = read(message, &self.group.default_type);
        let hop = (hop != Hop::default()).then(|| Box::new(hop));
        let mut desk = self.desk();
        let partition = desk
            .partitions
            .iter_mut()
            .find(|partition| partition.number == number && &*partition.topic == topic);
        if let Some(partition) = partition {
            // What another group delays is on the topic itself: the worker sees to it.
            let keeps_delays = topic == self.group.names.retry;
            partition.read(offset, (Arc::new(envelope), hop), keeps_delays);
        }
    }

    /// Takes partitions over where their owners before left.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<()> {
        let asked = |error| failed("consume", "asking for the group's offsets", error);
        let committed = self.patiently(|| consumer.committed_offsets(list.clone(), ANSWER));
        let committed = committed.map_err(asked)?;
        for element in committed.elements() {
            let (topic, number) = (element.topic(), element.partition());
            let watermarks = || consumer.fetch_watermarks(topic, number, ANSWER);
            let (position, high) = match element.offset() {
                Offset::Offset(offset) => {
                    let position = Position::read(offset, element.metadata());
                    let high = if position.open {
                        self.patiently(watermarks).map_err(asked)?.1
                    } else {
                        offset
                    };
                    (position, high)
                }
                // A partition that was added to the topic later: all of it is new to the group.
                _ => {
                    let (low, high) = self.patiently(watermarks).map_err(asked)?;
                    (Position::at(low), high)
                }
            };
            let start = Offset::Offset(position.offset);
            list.set_partition_offset(topic, number, start).map_err(asked)?;
            let id = self.next_assignment.fetch_add(1, Ordering::Relaxed);
            let retry = topic == self.group.names.retry;
            let name = if retry { &self.group.names.retry } else { &self.group.names.topic };
            let in_place = self.group.ordered && !retry;
            let partition = Partition::new(
                (name.as_str().into(), number, id),
                position,
                high,
                (in_place, self.group.limit),
            );
            self.commands.assign(id);
            self.desk().partitions.push(partition);
        }
        Ok(())
    }

    /// Asks until there is an answer, for as long as the broker would wait for it.
    fn patiently<T>(&self, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            match ask() {
                Err(error)
                    if Instant::now() < end && !self.commands.closing.load(Ordering::SeqCst) =>
                {
                    tracing::debug!(%error, "asking again");
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }

    /// Lets partitions go: handlers finish what they run, then all that is finished is committed.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let leaving = list.elements();
        let leaving: Vec<_> =
            leaving.iter().map(|element| (element.topic(), element.partition())).collect();
        let ids: Vec<_> = self
            .desk()
            .partitions
            .iter()
            .filter(|partition| leaving.contains(&(&*partition.topic, partition.number)))
            .map(|partition| partition.id)
            .collect();
        let is_lost = consumer.assignment_lost();
        let mut commands = Vec::new();
        if !is_lost {
            self.commands.set_leaving(&ids);
            let end = Instant::now() + HANDOVER;
            loop {
                self.commands.take(&mut commands);
                let mut desk = self.desk();
                desk.apply(&mut commands);
                let busy =
                    desk.partitions.iter().any(|known| ids.contains(&known.id) && known.out > 0);
                drop(desk);
                let closing = self.commands.closing.load(Ordering::SeqCst);
                if !busy || closing || Instant::now() > end {
                    break;
                }
                self.commands.sleep(Duration::from_millis(10), 1);
            }
        }
        self.commands.revoke(&ids, &mut commands);
        let mut desk = self.desk();
        desk.apply(&mut commands);
        let removed = desk.remove(&ids);
        drop(desk);
        if is_lost || removed.is_empty() {
            return;
        }
        let positions = removed.iter().map(|partition| (partition, partition.last_position()));
        let list = commits(positions);
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            // Without it the next owner repeats what was finished since the last commit.
            tracing::debug!(%error, "the last commit of a partition failed");
            let again = code(&error).is_some_and(|code| {
                !matches!(
                    code,
                    RDKafkaErrorCode::IllegalGeneration
                        | RDKafkaErrorCode::UnknownMemberId
                        | RDKafkaErrorCode::FencedInstanceId
                )
            });
            if !again || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl ClientContext for GroupContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the Kafka client reports an error");
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        oauth_token(self.token.as_ref())
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let changed = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if list.count() == 0 && self.desk().partitions.is_empty() {
                let group = &self.group.names.group;
                tracing::warn!(
                    group,
                    "the group has more members than partitions: this one gets nothing until another leaves"
                );
            }
            match self.assign(consumer, list) {
                Ok(()) => consumer.incremental_assign(list),
                Err(error) => {
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        } else {
            self.revoke(consumer, list);
            consumer.incremental_unassign(list)
        };
        if let Err(error) = changed {
            let error = failed("consume", "changing the assignment", error);
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, group = self.group.names.group, "a commit failed");
            self.uncommitted.store(true, Ordering::SeqCst);
        }
    }
}
