use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anybroker_core::{Declare, Destination, ErrorKind, Result, Start, Subscription};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::ask::{ANSWER, blocking, patiently};
use crate::client::{Clients, Context, WITH_METADATA};
use crate::error::{code, error_of, failed};
use crate::handle::{Handle, WITHOUT_BROKERS};
use crate::limits::{self, LARGEST, MAX_PAYLOAD};
use crate::names::{self, Names};
use crate::position::Position;

/// Creates topics and positions groups.
pub(crate) struct Topology {
    pub(crate) clients: Clients,
    reader: Handle<BaseConsumer<Context>>,
    admin: Option<Handle<AdminClient<Context>>>,
    declared: Mutex<HashSet<String>>,
}

/// A topic to be, and what it is to be created with.
struct Wanted<'a> {
    name: &'a str,
    /// What is asked for; anything else is a mismatch.
    partitions: Option<usize>,
    default: usize,
    options: Vec<(&'a str, String)>,
}

impl Topology {
    pub(crate) fn new(clients: Clients, reader: BaseConsumer<Context>) -> Result<Self> {
        let other = clients.clone();
        let reader = Handle::begun(reader, move || other.reader(&[WITH_METADATA]));
        let other = clients.clone();
        let create = move || other.create(&[], other.context(), "connect");
        let admin = clients.settings.token.is_none().then(|| Handle::new(create)).transpose()?;
        Ok(Self { clients, reader, admin, declared: Mutex::default() })
    }

    /// To ask questions with; blocks for a moment.
    pub(crate) fn reader(&self) -> Arc<BaseConsumer<Context>> {
        let reader = self.reader.get();
        // Gives the client the token that it may be waiting for.
        read_log(&reader);
        if reader.context().brokers.are_lost() {
            return self.reader.replace(&reader, WITHOUT_BROKERS);
        }
        reader
    }

    /// To create topics and delete records with.
    ///
    /// # Errors
    /// `Unsupported` with OAUTHBEARER: the client never asks for a token for this handle.
    pub(crate) fn admin(&self, operation: &'static str) -> Result<Arc<AdminClient<Context>>> {
        let admin = self.admin.as_ref().map(Handle::get);
        admin.ok_or_else(|| {
            let text = "with OAUTHBEARER the client can neither create topics nor delete records: do it by other means, or connect as a user with a password";
            error_of(ErrorKind::Unsupported, operation, text)
        })
    }

    /// Lets another handle do what this one could not, where it reaches nobody: nobody reads its log,
    /// which would say whether it has let its brokers go.
    pub(crate) fn give_up(&self, admin: &Arc<AdminClient<Context>>, error: &KafkaError) {
        let unanswered = matches!(
            code(error),
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::OperationTimedOut
                    | RDKafkaErrorCode::RequestTimedOut
                    | RDKafkaErrorCode::WaitingForCoordinator
            )
        );
        if let (true, Some(handle)) = (unanswered, &self.admin) {
            handle.replace(admin, "no broker answered what it asked for");
        }
    }

    pub(crate) fn prefix(&self) -> Option<&str> {
        self.clients.settings.options.prefix.as_deref()
    }

    fn is_declared(&self, key: &str) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn set_declared(&self, key: String) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    }

    /// Looks again at what was found to be there.
    pub(crate) fn forget(&self) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Creates a destination or checks it; a queue with its group.
    pub(crate) async fn declare_destination(
        self: &Arc<Self>,
        destination: &Destination,
    ) -> Result<()> {
        if let Destination::Queue(queue) = destination {
            return self.declare(&Subscription::queue(queue.clone())).await;
        }
        let name = names::topic(destination, self.prefix())?;
        let key = format!("{destination:?}");
        if self.clients.settings.options.declare == Declare::Off || self.is_declared(&key) {
            return Ok(());
        }
        self.ensure(&self.wanted(&name, destination)).await?;
        self.set_declared(key);
        Ok(())
    }

    /// Creates a group's topics and its position, or checks them.
    pub(crate) async fn declare(self: &Arc<Self>, subscription: &Subscription) -> Result<()> {
        let names = Names::new(subscription, self.prefix())?;
        let destination = subscription.destination();
        let key = format!("{destination:?} {}", names.group);
        if self.clients.settings.options.declare == Declare::Off || self.is_declared(&key) {
            return Ok(());
        }
        // Looked at first: whoever made it had positioned the group before.
        let existed = self.partitions(&names.dead_letters).await?.is_some();
        let partitions = self.ensure(&self.wanted(&names.topic, destination)).await?;
        // A group that has existed has lost its offsets, which Kafka keeps for a week without
        // members: to repeat is better than to skip.
        let start = subscription.start_position();
        let from_start = existed || !destination.is_topic() || start == Start::Earliest;
        self.position(&names.group, &names.topic, partitions, from_start).await?;
        let largest = limits::taken(self, &names.topic).await;
        let options = [
            // Messages that wait to be handled must outlast whatever a topic keeps by default.
            ("retention.ms", "-1".to_owned()),
            ("retention.bytes", "-1".to_owned()),
            ("cleanup.policy", "delete".to_owned()),
            // What fitted into the group's topic must fit into these.
            (LARGEST, limits::of_copies(self, largest).to_string()),
        ];
        for name in [&names.retry, &names.dead_letters] {
            let retries = *name == names.retry;
            // The dead letters are looked for in one partition.
            let only = (!retries).then_some(1);
            let options = options.to_vec();
            let wanted = Wanted { name, partitions: only, default: partitions, options };
            let partitions = self.ensure(&wanted).await?;
            if let Some(largest) = largest {
                limits::check_copies(self, name, (&names.topic, largest)).await?;
            }
            if retries {
                self.position(&names.group, name, partitions, true).await?;
            }
        }
        self.set_declared(key);
        Ok(())
    }

    fn wanted<'a>(&self, name: &'a str, destination: &Destination) -> Wanted<'a> {
        let stated = destination.stated_partitions().map(usize::from);
        // What exists outside the rules has whatever shape it has.
        let by_shape = (destination.is_ordered() && !destination.is_native()).then_some(1);
        let partitions = stated.or(by_shape);
        let default = usize::from(self.clients.settings.partitions);
        // What the broker gives it without being told may be more.
        let largest = self.clients.settings.server.max_payload;
        let options = (largest > MAX_PAYLOAD).then(|| (LARGEST, largest.to_string()));
        Wanted { name, partitions, default, options: options.into_iter().collect() }
    }

    /// Answers how many partitions the topic has, creating it if that is asked for.
    async fn ensure(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<usize> {
        let name = wanted.name;
        let count = match self.partitions(name).await? {
            Some(count) => count,
            None if self.clients.settings.options.declare == Declare::Verify => {
                let text = format!(
                    "topic {name:?} does not exist; create it, or connect with declare=create"
                );
                return Err(error_of(ErrorKind::NotFound, "declare", text));
            }
            None => self.create(wanted).await?,
        };
        match wanted.partitions {
            Some(asked) if asked != count => {
                let text = format!(
                    "topic {name:?} has {count} partitions, {asked} were asked for; state {count} on all sides, or create another topic"
                );
                Err(error_of(ErrorKind::Mismatch, "declare", text))
            }
            _ => Ok(count),
        }
    }

    async fn create(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<usize> {
        let name = wanted.name;
        let count = wanted.partitions.unwrap_or(wanted.default);
        let partitions = i32::try_from(count).unwrap_or(i32::MAX);
        // -1 leaves it to the broker.
        let copies = self.clients.settings.replication.map_or(-1, i32::from);
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        // A delay and an expiry count from when the broker stored a message, not from what the
        // publisher's clock showed.
        topic = topic.set("message.timestamp.type", "LogAppendTime");
        for (option, value) in &wanted.options {
            topic = topic.set(option, value);
        }
        let options =
            AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let refused = |error| failed("declare", &format!("creating topic {name:?}"), error);
        let admin = self.admin("declare")?;
        let created = admin.create_topics([&topic], &options).await;
        let created = created.inspect_err(|error| self.give_up(&admin, error)).map_err(refused)?;
        for result in created {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(refused(KafkaError::AdminOp(code))),
            }
        }
        let end = Instant::now() + ANSWER;
        loop {
            if let Some(count) = self.partitions(name).await? {
                return Ok(count);
            }
            if Instant::now() > end {
                let text = format!("topic {name:?} was created, but no broker shows it");
                return Err(error_of(ErrorKind::Unavailable, "declare", text));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many partitions a topic has, each with a leader; `None` when it does not exist.
    pub(crate) async fn partitions(self: &Arc<Self>, name: &str) -> Result<Option<usize>> {
        let (this, name) = (Arc::clone(self), name.to_owned());
        blocking(move || {
            let end = Instant::now() + ANSWER;
            loop {
                let error = match this.reader().fetch_metadata(Some(&name), ANSWER) {
                    Ok(metadata) => {
                        let topic = metadata.topics().first();
                        let error =
                            topic.and_then(MetadataTopic::error).map(RDKafkaErrorCode::from);
                        let partitions = topic.map(MetadataTopic::partitions).unwrap_or_default();
                        match error {
                            Some(
                                RDKafkaErrorCode::UnknownTopicOrPartition
                                | RDKafkaErrorCode::UnknownTopic,
                            ) => return Ok(None),
                            None if !partitions.is_empty()
                                && partitions.iter().all(|partition| partition.leader() >= 0) =>
                            {
                                return Ok(Some(partitions.len()));
                            }
                            error => KafkaError::MetadataFetch(
                                error.unwrap_or(RDKafkaErrorCode::LeaderNotAvailable),
                            ),
                        }
                    }
                    Err(error) => error,
                };
                let passes = matches!(code(&error), Some(RDKafkaErrorCode::LeaderNotAvailable));
                if !passes || Instant::now() > end {
                    return Err(failed("declare", &format!("looking at topic {name:?}"), error));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .await
    }

    /// The id of a topic, which another one of its name does not have; blocks.
    ///
    /// Unknown where the topic cannot be looked at now, or where the client does not say it.
    pub(crate) fn topic_id(&self, name: &str) -> Option<Arc<str>> {
        let reader = self.reader();
        let metadata = reader.fetch_metadata(Some(name), ANSWER).ok()?;
        metadata.topics().first().filter(|topic| topic.error().is_none())?;
        read_log(&reader);
        reader.context().ids.of(name)
    }

    /// Deletes what the group has finished from its own retry topic.
    pub(crate) async fn trim(self: &Arc<Self>, names: &Names) {
        let trimmed = async {
            let (group, retry) = (names.group.clone(), names.retry.clone());
            let Some(partitions) = self.partitions(&retry).await? else { return Ok(()) };
            let this = Arc::clone(self);
            let asked = |error| failed("trim", "the retry topic", error);
            let list = blocking(move || {
                let positions = committed(&this, &group, &retry, partitions)?;
                let mut list = TopicPartitionList::new();
                for (partition, position) in (0..).zip(positions) {
                    let Some(position) = position.filter(|position| position.offset > 0) else {
                        continue;
                    };
                    let offset = Offset::Offset(position.offset);
                    list.add_partition_offset(&retry, partition, offset).map_err(asked)?;
                }
                Ok(list)
            })
            .await?;
            if list.count() > 0 {
                let options = AdminOptions::new().request_timeout(Some(ANSWER));
                let admin = self.admin("trim")?;
                let deleted = admin.delete_records(&list, &options).await;
                deleted.inspect_err(|error| self.give_up(&admin, error)).map_err(asked)?;
            }
            Ok::<_, anybroker_core::Error>(())
        };
        if let Err(error) = trimmed.await {
            // They are finished: that they still take place harms nobody.
            tracing::debug!(%error, topic = names.retry, "finished messages stay");
        }
    }

    /// Stores where the group begins in partitions where it has no position.
    async fn position(
        self: &Arc<Self>,
        group: &str,
        topic: &str,
        partitions: usize,
        from_start: bool,
    ) -> Result<()> {
        let (this, group, topic) = (Arc::clone(self), group.to_owned(), topic.to_owned());
        blocking(move || {
            let asked =
                |error| failed("declare", &format!("the position of group {group:?}"), error);
            // Most groups have been there before, and nothing else is to be asked for them.
            let known = committed(&this, &group, &topic, partitions)?;
            if known.iter().all(Option::is_some) {
                return Ok(());
            }
            // The ends of the logs, and then once more for the position: whoever answers that later
            // has stored it later, and what is published after that has a higher offset.
            let mut watermarks = Vec::new();
            for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
                let ask = || this.reader().fetch_watermarks(&topic, partition, ANSWER);
                watermarks.push((partition, patiently(&this.clients.cluster, ask).map_err(asked)?));
            }
            let topic_id = this.topic_id(&topic);
            let committed = committed(&this, &group, &topic, partitions)?;
            let is_new = committed.iter().all(Option::is_none);
            let mut missing = TopicPartitionList::new();
            for ((partition, (low, high)), known) in watermarks.into_iter().zip(&committed) {
                if known.is_none() {
                    // A partition that was added to the topic later is read from its start.
                    let start = if from_start || !is_new { low } else { high };
                    let mut element = missing.add_partition(&topic, partition);
                    element.set_offset(Offset::Offset(start)).map_err(asked)?;
                    let topic_id = topic_id.clone();
                    element.set_metadata(Position { topic_id, ..Position::at(start) }.metadata());
                }
            }
            if missing.count() == 0 {
                return Ok(());
            }
            let observer = this.clients.observer(&group)?;
            let commit = || observer.commit(&missing, CommitMode::Sync);
            match patiently(&this.clients.cluster, commit) {
                // It has members, who were not there a moment ago, and whose position counts.
                Err(error) if is_live(&error) => Ok(()),
                result => result.map_err(asked),
            }
        })
        .await
    }
}

/// Takes in what the client has logged, which waits to be polled, line by line.
fn read_log(reader: &BaseConsumer<Context>) {
    let ids = &reader.context().ids;
    loop {
        let lines = ids.lines();
        if reader.poll(Duration::ZERO).is_none() && ids.lines() == lines {
            return;
        }
    }
}

fn is_live(error: &KafkaError) -> bool {
    let live = [
        RDKafkaErrorCode::UnknownMemberId,
        RDKafkaErrorCode::IllegalGeneration,
        RDKafkaErrorCode::RebalanceInProgress,
        RDKafkaErrorCode::StaleMemberEpoch,
    ];
    code(error).is_some_and(|code| live.contains(&code))
}

/// The group's offsets, each of them answered: one that failed is not one that is missing.
pub(crate) fn offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    list: &TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    let committed = consumer.committed_offsets(list.clone(), ANSWER)?;
    committed.elements().iter().try_for_each(TopicPartitionListElem::error)?;
    Ok(committed)
}

/// The group's positions in a topic; blocks. Those of a topic that had its name before count as none.
pub(crate) fn committed(
    topology: &Topology,
    group: &str,
    topic: &str,
    partitions: usize,
) -> Result<Vec<Option<Position>>> {
    let asked = |error| failed("declare", &format!("the position of group {group:?}"), error);
    let topic_id = topology.topic_id(topic);
    let observer = topology.clients.observer(group)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, i32::try_from(partitions).unwrap_or(i32::MAX) - 1);
    let ask = || offsets(&observer, &list);
    let committed = patiently(&topology.clients.cluster, ask).map_err(asked)?;
    let positions = committed.elements();
    let positions = positions.iter().map(|element| match element.offset() {
        Offset::Offset(offset) => Some(Position::read(offset, element.metadata()))
            .filter(|position| !position.is_of_another(topic_id.as_deref())),
        _ => None,
    });
    Ok(positions.collect())
}
