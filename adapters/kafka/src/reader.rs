use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anybroker_core::{Error, ErrorKind, Result, RetryClass};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::arrivals::{Arrival, Arrivals, Bell, End, What};
use crate::ask::ANSWER;
use crate::clerk::Clerk;
use crate::client::Clients;
use crate::commands::{Commands, Seat};
use crate::desk::Desk;
use crate::error::{code, error_of, failed};
use crate::membership::{GroupContext, GroupSettings};
use crate::options::{GroupProtocol, UnreadableBatches};
use crate::unreadable;

/// How long the client is not asked while there is no room: it may have a rebalance to tell.
const GLANCE: Duration = Duration::from_millis(100);

/// After how long a member that was given nothing says so: a broker that does not know the
/// group's protocol gives no answer, and the client asks on.
const UNHEARD: Duration = Duration::from_secs(10);

/// How many messages are read before the desk gets them.
const LOT: usize = 512;

/// Joins a group with its first consumer, and starts the threads that serve it.
pub(crate) fn start(
    clients: &Clients,
    group: GroupSettings,
    seat: Seat,
    commands: Arc<Commands>,
) -> Result<()> {
    let options = clients.member(&group.names.group);
    let options: Vec<_> = options.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut desk = Desk::new(group.ordered, group.court.clone());
    desk.seats.push(seat);
    let topics = [group.names.topic.clone(), group.names.retry.clone()];
    let cluster = Arc::clone(&clients.cluster);
    let context = GroupContext::new(group, desk, Arc::clone(&commands), cluster);
    let mut consumer: BaseConsumer<GroupContext> = clients.create(&options, context, "consume")?;
    let bell = Bell::default();
    let reader = bell.clone();
    consumer.set_nonempty_callback(move || reader.ring());
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(|error| failed("consume", "joining the group", error))?;
    let name = format!("serves {}", consumer.context().group.names.group);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || Member { consumer, commands, bell }.run())
        .map(drop)
        .map_err(no_thread)
}

fn no_thread(error: std::io::Error) -> Error {
    error_of(ErrorKind::Broker, "consume", "no thread could be started").with_source(error)
}

/// A process's membership in a group, with the threads that serve it.
struct Member {
    consumer: BaseConsumer<GroupContext>,
    commands: Arc<Commands>,
    /// The reader's.
    bell: Bell,
}

impl Member {
    fn run(self) {
        let Self { consumer, commands, bell } = self;
        commands.started();
        let _ended = commands.announce_end();
        let context = Arc::clone(consumer.context());
        let failure = work(&consumer, &commands, bell);
        commands.failed.store(failure.is_some(), Ordering::SeqCst);
        // What was settled until here counts; the last commit is made when the client gives its
        // partitions back.
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
}

/// Reads on one thread and serves on this one, until either ends.
fn work(
    consumer: &BaseConsumer<GroupContext>,
    commands: &Arc<Commands>,
    bell: Bell,
) -> Option<Error> {
    let arrivals = Arrivals::new(bell);
    let arrivals = &arrivals;
    std::thread::scope(|scope| {
        let _end = End(arrivals, commands);
        let reader = Reader { consumer, commands, arrivals };
        let name = format!("reads {}", consumer.context().group.names.group);
        let started =
            std::thread::Builder::new().name(name).spawn_scoped(scope, move || reader.run());
        match started {
            Ok(_) => Clerk { consumer, commands, arrivals }.work(),
            Err(error) => Some(no_thread(error)),
        }
    })
}

/// The thread that polls the client, which calls back the group's rebalances on it.
struct Reader<'a> {
    consumer: &'a BaseConsumer<GroupContext>,
    commands: &'a Commands,
    arrivals: &'a Arrivals<Arrival<'a>>,
}

impl<'a> Reader<'a> {
    fn run(self) {
        let _end = End(self.arrivals, self.commands);
        self.arrivals.started();
        let mut lot = Vec::with_capacity(LOT);
        let mut glanced = Instant::now();
        let protocol = self.consumer.context().group.protocol;
        let mut unheard = (protocol == GroupProtocol::Consumer).then(Instant::now);
        while !self.arrivals.ended() {
            if unheard.take_if(|since| since.elapsed() > UNHEARD).is_some() {
                self.consumer.context().warn_of_silence();
            }
            let full = self.arrivals.is_full();
            if !full || glanced.elapsed() >= GLANCE {
                glanced = Instant::now();
                let most = if full { 1 } else { LOT };
                if let Err(error) = self.poll(most, &mut lot) {
                    return self.consumer.context().fail(error);
                }
                let all = lot.len() == most;
                if self.arrivals.push(&mut lot) {
                    self.commands.wake();
                }
                if all && !full {
                    continue;
                }
            }
            // Woken when there is room again, and when the client has something again.
            std::thread::park_timeout(GLANCE);
        }
    }

    /// Reads up to so many messages.
    ///
    /// # Errors
    /// What cannot be mended: offsets that are gone, rights that are missing.
    fn poll(&self, most: usize, lot: &mut Vec<Arrival<'a>>) -> Result<()> {
        let context = self.consumer.context();
        let mut before = true;
        while lot.len() < most {
            let lines = context.ids.lines();
            let polled = self.consumer.poll(Duration::ZERO);
            let some = polled.is_some() || context.ids.lines() != lines;
            match polled {
                // The client answers the same for what it saw to itself.
                None if !before => break,
                None => {}
                Some(Ok(message)) => lot.extend(context.arrival(message)),
                Some(Err(error)) if code(&error) == Some(RDKafkaErrorCode::BadCompression) => {
                    lot.extend(self.pass_over());
                }
                Some(Err(error)) => self.failed(error)?,
            }
            before = some;
        }
        Ok(())
    }

    /// Names the batch that could not be unpacked, and passes over it where that is asked for: a dead
    /// letter that says where it is comes first. The client reads it again and again; it is looked at
    /// once in 30 s, since that takes a connection of its own.
    fn pass_over(&self) -> Option<Arrival<'a>> {
        let context = self.consumer.context();
        let (settings, group) = (&context.group, &context.group.names.group);
        let batch = context.unreadable.take()?;
        let skips = settings.unreadable == UnreadableBatches::Skip;
        if !context.unreadable.is_due(batch) {
            return None;
        }
        for (topic, number, assignment) in context.standing_before(batch) {
            let partition = format!("{topic}[{number}]");
            match self.behind((&topic, number), batch) {
                Ok(None) => {}
                Ok(Some(behind)) if skips => {
                    let passed = context.point_to((&topic, number), batch, behind);
                    let passed = passed.and_then(|()| self.seek(&topic, number, behind));
                    if let Err(error) = passed {
                        tracing::warn!(%error, group, partition, "a batch could not be passed over");
                        return None;
                    }
                    tracing::error!(
                        group,
                        partition,
                        offset = batch,
                        behind,
                        "a batch cannot be unpacked: it was passed over, and a dead letter says where it is"
                    );
                    return Some(Arrival { assignment, what: What::Gap(behind) });
                }
                Ok(Some(behind)) => {
                    tracing::error!(
                        group,
                        partition,
                        offset = batch,
                        behind,
                        "a batch cannot be unpacked, and its partition stands before it; the others go on. Let the client take more (receive.message.max.bytes), or pass over it with unreadable=skip"
                    );
                    // Another may stand at the same offset.
                }
                Err(error) => {
                    tracing::warn!(%error, group, partition, offset = batch, "a batch that cannot be unpacked may be here");
                }
            }
        }
        None
    }

    /// The first offset behind a batch that cannot be unpacked, if it is in this partition.
    fn behind(&self, partition: (&str, i32), batch: i64) -> Result<Option<i64>> {
        let group = &self.consumer.context().group;
        let asked = self.consumer.fetch_watermarks(partition.0, partition.1, ANSWER);
        let (_, end) = asked.map_err(|error| failed("consume", "the end of the log", error))?;
        unreadable::behind(&group.topology.clients, &group.names.group, partition, batch, end)
    }

    fn seek(&self, topic: &str, number: i32, offset: i64) -> Result<()> {
        let sought = self.consumer.seek(topic, number, Offset::Offset(offset), ANSWER);
        sought.map_err(|error| failed("consume", "passing over a batch", error))
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
            if position > high {
                let text = format!(
                    "partition {} of topic {:?} ends at {high}, before what the group has handled: it was deleted and made again, and is read from its start",
                    partition.number, partition.topic
                );
                let ended = error_of(ErrorKind::NotFound, "consume", text);
                return ended.class(RetryClass::Permanent).with_source(error);
            }
            if position < low {
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
}
