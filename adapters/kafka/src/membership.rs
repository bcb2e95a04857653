//! A process's membership in a group: what the client calls back on the reader's own thread.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anybroker_core::{
    Confirmation, Envelope, Error, ErrorKind, Failure, Hop, Result, RetryClass, now,
};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::arrivals::{Arrival, What};
use crate::ask::ANSWER;
use crate::cluster::Cluster;
use crate::commands::Commands;
use crate::desk::{Desk, commits};
use crate::error::{code, error_of, failed};
use crate::handle::{Brokers, WITHOUT_BROKERS};
use crate::identity::TopicIds;
use crate::message::read;
use crate::names::Names;
use crate::options::{GroupProtocol, UnreadableBatches};
use crate::partition::{Kept, Partition};
use crate::position::Position;
use crate::publish::{Publisher, Record, Waiting};
use crate::topology::{Topology, offsets};
use crate::trial::Court;
use crate::unreadable::Unreadable;

/// How long handlers may take to finish what they run when a partition goes to another process.
const HANDOVER: Duration = Duration::from_secs(10);

/// How long the ends of logs are asked for that can be done without: together, and each when that is
/// used up.
const GLANCE: Duration = Duration::from_secs(2);
const LEAST_GLANCE: Duration = Duration::from_millis(50);

/// What a group's thread is set up with.
pub(crate) struct GroupSettings {
    pub(crate) names: Arc<Names>,
    pub(crate) default_type: String,
    pub(crate) ordered: bool,
    pub(crate) limit: Option<u32>,
    pub(crate) protocol: GroupProtocol,
    pub(crate) unreadable: UnreadableBatches,
    /// To move on what would be waited for.
    pub(crate) publisher: Arc<Publisher>,
    /// To ask which topics these are.
    pub(crate) topology: Arc<Topology>,
    pub(crate) court: Court,
}

/// A partition, and the number of its assignment.
pub(crate) type Assigned = (Arc<str>, i32, u16);

/// What the client calls back, on the reader's own thread.
pub(crate) struct GroupContext {
    pub(crate) group: GroupSettings,
    desk: Mutex<Desk>,
    commands: Arc<Commands>,
    next_assignment: AtomicU16,
    /// What is read belongs to these; only the thread that reads asks, and changes them.
    assigned: Mutex<Vec<Assigned>>,
    failure: Mutex<Option<Error>>,
    pub(crate) ids: TopicIds,
    brokers: Brokers,
    pub(crate) unreadable: Unreadable,
    cluster: Arc<Cluster>,
}

impl GroupContext {
    pub(crate) fn new(
        group: GroupSettings,
        desk: Desk,
        commands: Arc<Commands>,
        cluster: Arc<Cluster>,
    ) -> Self {
        Self {
            group,
            desk: Mutex::new(desk),
            commands,
            next_assignment: AtomicU16::new(0),
            assigned: Mutex::default(),
            failure: Mutex::default(),
            ids: TopicIds::default(),
            brokers: Brokers::default(),
            unreadable: Unreadable::default(),
            cluster,
        }
    }

    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn fail(&self, error: Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.commands.wake();
    }

    fn assigned(&self) -> MutexGuard<'_, Vec<Assigned>> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message of a partition that is assigned.
    pub(crate) fn arrival<'a>(&self, message: BorrowedMessage<'a>) -> Option<Arrival<'a>> {
        let number = message.partition();
        let is_from = |known: &&Assigned| known.1 == number && *known.0 == *message.topic();
        let assignment = self.assigned().iter().find(is_from)?.2;
        Some(Arrival { assignment, what: What::Message(message) })
    }

    /// Reads what has arrived.
    pub(crate) fn read(&self, message: &BorrowedMessage<'_>) -> Kept {
        let (envelope, hop) = read(message, &self.group.default_type);
        (Arc::new(envelope), hop)
    }

    /// Says what may be the cause when the group has given nothing.
    pub(crate) fn warn_of_silence(&self) {
        if self.assigned().is_empty() {
            let group = &self.group.names.group;
            tracing::warn!(
                group,
                "the group has given this member no partition: it has more members than partitions, or the broker does not know group-protocol=consumer, which Kafka has from 4.0 on (use classic)"
            );
        }
    }

    /// Takes partitions over where their owners before left.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<()> {
        let asked = |error| failed("consume", "asking for the group's offsets", error);
        let committed = self.patiently(|| offsets(consumer, list)).map_err(asked)?;
        let names = &self.group.names;
        let ids = [&names.topic, &names.retry].map(|topic| self.group.topology.topic_id(topic));
        // One partition without a leader must not keep the others from being read.
        let end = Instant::now() + GLANCE;
        for element in committed.elements() {
            let (topic, number) = (element.topic(), element.partition());
            let retry = topic == names.retry;
            let topic_id = ids[usize::from(retry)].clone();
            let glance = || {
                let left = end.saturating_duration_since(Instant::now());
                consumer.fetch_watermarks(topic, number, left.max(LEAST_GLANCE))
            };
            let position = match element.offset() {
                Offset::Offset(offset) => Some(Position::read(offset, element.metadata())),
                _ => None,
            };
            let seen = position.as_ref().and_then(|_| glance().ok());
            // A commit of a topic that was deleted since says nothing of the one of today; and one
            // beyond the end of the log is of a log that is gone.
            let is_of_another = |position: &Position| {
                position.is_of_another(topic_id.as_deref())
                    || seen.is_some_and(|(_, high)| position.offset > high)
            };
            if position.as_ref().is_some_and(is_of_another) {
                tracing::warn!(
                    group = names.group,
                    topic,
                    partition = number,
                    "the topic was deleted and made again, or has lost its end: it is read from its start"
                );
            }
            let (mut position, high) = match position.filter(|known| !is_of_another(known)) {
                // Without an answer, all that was reserved may have been dispatched.
                Some(position) => {
                    let until = position.until;
                    (position, seen.map_or(until, |(_, high)| high))
                }
                // So is a partition that was added to the topic later: all of it is new to the group.
                None => {
                    let watermarks = || consumer.fetch_watermarks(topic, number, ANSWER);
                    let (low, high) = self.patiently(watermarks).map_err(asked)?;
                    (Position::at(low), high)
                }
            };
            position.topic_id = topic_id;
            let mut id = self.next_assignment.fetch_add(1, Ordering::Relaxed);
            // After many rebalances the numbers begin anew.
            while self.desk().partition(id).is_some() {
                id = self.next_assignment.fetch_add(1, Ordering::Relaxed);
            }
            if retry && let Some((low, _)) = seen {
                // Only what was finished is deleted from there: a commit was lost that said so.
                position.offset = position.offset.max(low);
            }
            let start = Offset::Offset(position.offset);
            list.set_partition_offset(topic, number, start).map_err(asked)?;
            let name = if retry { &names.retry } else { &names.topic };
            let name: Arc<str> = name.as_str().into();
            self.assigned().push((Arc::clone(&name), number, id));
            let partition = Partition::new(
                (name, number, id),
                position,
                high,
                (self.group.ordered, retry, self.group.limit),
            );
            self.commands.assign(id);
            self.desk().partitions.push(partition);
        }
        Ok(())
    }

    /// Which partitions may stand before a batch that cannot be unpacked, the likeliest first: the
    /// client does not say which it is.
    pub(crate) fn standing_before(&self, batch: i64) -> Vec<Assigned> {
        let desk = self.desk();
        let stands = desk.partitions.iter().filter(|one| one.next_read() <= batch);
        let assigned = |one: &Partition| (Arc::clone(&one.topic), one.number, one.id);
        let mut stands: Vec<_> = stands.map(|one| (one.next_read(), assigned(one))).collect();
        stands.sort_by_key(|(next, _)| Reverse(*next));
        stands.into_iter().map(|(_, assigned)| assigned).collect()
    }

    /// Stores a dead letter that says where a batch is that was passed over; blocks.
    pub(crate) fn point_to(
        &self,
        (topic, number): (&str, i32),
        batch: i64,
        end: i64,
    ) -> Result<()> {
        let names = &self.group.names;
        let place = format!(
            r#"{{"topic":{topic:?},"partition":{number},"offset":{batch},"behind":{end}}}"#
        );
        let id = format!("{topic}[{number}]@{batch}");
        let envelope = Envelope::new(self.group.default_type.clone(), place).with_id(id);
        let error = format!("the batch at offset {batch} of {topic}[{number}] cannot be unpacked");
        let origin = self.group.default_type.clone();
        let failure = Failure::new("unreadable", error, origin, names.group.clone(), now());
        let hop = Hop { failure: Some(Box::new(failure)), ..Hop::default() };
        let (confirmer, confirmation) = Confirmation::channel();
        let waiting = Waiting::Publisher(confirmer);
        let dead_letters = names.dead_letters.as_str().into();
        let publisher = &self.group.publisher;
        publisher.send(Record::new(dead_letters, Arc::new(envelope), hop, waiting));
        publisher.runtime.block_on(confirmation)
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

    /// Lets partitions go: handlers finish what they run, then all that is finished is committed,
    /// with the desk in hand: nobody is told before that what was settled is committed.
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
        self.assigned().retain(|(.., id)| !ids.contains(id));
        let is_lost = consumer.assignment_lost();
        if !is_lost {
            self.commands.set_leaving(&ids);
            let end = Instant::now() + HANDOVER;
            loop {
                let mut desk = self.desk();
                desk.apply(&self.commands);
                let mut busy = false;
                for partition in desk.partitions.iter_mut().filter(|known| ids.contains(&known.id))
                {
                    partition.leaving = true;
                    busy |= partition.out > 0;
                }
                drop(desk);
                let closing = self.commands.closing.load(Ordering::SeqCst);
                if !busy || closing || Instant::now() > end {
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        let mut desk = self.desk();
        self.commands.revoke(&ids);
        desk.apply(&self.commands);
        let removed = desk.remove(&ids);
        // The client would keep them paused when they come back.
        let mut paused = TopicPartitionList::new();
        for partition in removed.iter().filter(|partition| partition.paused) {
            paused.add_partition(&partition.topic, partition.number);
        }
        // It fails only for what the client does not know, which is not paused either.
        let _ = consumer.resume(&paused);
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
                    // A topic that is gone has no position any more.
                    RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::IllegalGeneration
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
        if let Some(topic) = self.ids.note(text)
            && [&self.group.names.topic, &self.group.names.retry].contains(&&topic.to_owned())
        {
            let text = format!("topic {topic:?} was deleted and made again");
            let error = error_of(ErrorKind::NotFound, "consume", text);
            self.fail(error.class(RetryClass::Permanent));
        }
        // It may keep its connection to the coordinator, and find the brokers there; or read nothing
        // any more, and keep its partitions for ever.
        if self.brokers.note(text) {
            self.fail(error_of(ErrorKind::Unavailable, "consume", WITHOUT_BROKERS));
        }
        self.cluster.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.unreadable.note(reason);
        self.cluster.error(&error, reason);
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.cluster.token()
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
                Err(error) => return self.fail(error),
            }
        } else {
            self.revoke(consumer, list);
            consumer.incremental_unassign(list)
        };
        if let Err(error) = changed {
            self.fail(failed("consume", "changing the assignment", error));
        }
    }
}
