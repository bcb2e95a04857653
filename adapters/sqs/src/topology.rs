mod topics;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anybroker_core::adapter::pause;
use anybroker_core::{Declare, Destination, Error, ErrorKind, Result, Subscription};
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clients::Clients;
use crate::error::{error_of, failed};
use crate::message::SQS_BYTES;
use crate::names::{self, FIFO};
use crate::options::Settings;

const DECLARE: &str = "declare";

/// The longest that SQS keeps a message.
const RETENTION_SECONDS: u32 = 14 * 24 * 3600;

/// After so many receives SQS itself moves a message to the dead-letter queue. A wide safety net:
/// its counter counts releases too, and it is the most that SQS takes.
const MOST_RECEIVES: u32 = 1000;

/// How many destinations and groups are declared at once. SNS limits such calls of an account
/// by the second, and a process that starts with a thousand groups is not alone.
/// <https://docs.aws.amazon.com/general/latest/gr/sns.html>
const DECLARATIONS: usize = 4;

/// How long what was created may be unknown: a second or more.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const FRESH: Duration = Duration::from_secs(5);

/// How long a declaration waits where it is slowed down. The name of a queue that was deleted is
/// free again after 60 s.
const PATIENCE: Duration = Duration::from_secs(75);

/// Creates what is used, once, and knows its addresses.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) clients: Clients,
    pub(crate) settings: Settings,
    known: Mutex<Known>,
    /// What the ARNs of this account's topics begin with, once there is one.
    arns: OnceLock<String>,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    /// By name.
    queues: HashMap<String, Arc<str>>,
    /// By name.
    topics: HashMap<String, Arc<str>>,
    /// The topic of a group, by the name of its queue.
    groups: HashMap<String, Option<Arc<str>>>,
    /// When it was created here, by address.
    created: HashMap<Arc<str>, Instant>,
}

/// Where a group's messages are.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The queue's URL.
    pub(crate) queue: Arc<str>,
    /// The dead-letter queue's URL.
    pub(crate) dead_letters: Arc<str>,
}

impl Topology {
    pub(crate) fn new(clients: Clients, settings: Settings) -> Self {
        let turns = Semaphore::new(DECLARATIONS);
        Self { clients, settings, known: Mutex::default(), arns: OnceLock::new(), turns }
    }

    pub(crate) fn prefix(&self) -> Option<&str> {
        self.settings.options.prefix.as_deref()
    }

    /// The group of a subscription, created or checked at first use; slowed down it waits.
    pub(crate) async fn group(&self, subscription: &Subscription) -> Result<Group> {
        patiently(|| self.group_at_once(subscription)).await
    }

    /// The ARN of a topic, created or checked at first use; slowed down it waits.
    pub(crate) async fn topic(&self, destination: &Destination) -> Result<Arc<str>> {
        patiently(|| self.topic_at_once(destination)).await
    }

    /// The same for who repeats it until a deadline.
    pub(crate) async fn group_at_once(&self, subscription: &Subscription) -> Result<Group> {
        let names = names::of_subscription(self.prefix(), subscription)?;
        let destination = subscription.destination();
        if let Some(group) = self.known_group(&names) {
            return Ok(group);
        }
        let topic = match destination {
            Destination::Topic(_) => Some(self.topic_at_once(destination).await?),
            Destination::Queue(_) => None,
        };
        let _turn = self.turns.acquire().await;
        if let Some(group) = self.known_group(&names) {
            return Ok(group);
        }
        let dead_letters = self.queue(&names.dead_letters, None, topic.as_deref()).await?;
        let queue = self.queue(&names.queue, Some(&dead_letters), topic.as_deref()).await?;
        if let Some(topic) = &topic {
            match self.settings.options.declare {
                Declare::Create => self.subscribe(topic, &queue, &dead_letters).await?,
                Declare::Verify => self.verify_subscribed(topic, &queue).await?,
                Declare::Off => {}
            }
        }
        self.known().groups.insert(names.queue, topic);
        Ok(Group { queue, dead_letters })
    }

    fn known_group(&self, names: &names::Names) -> Option<Group> {
        let known = self.known();
        known.groups.get(&names.queue)?;
        Some(Group {
            queue: known.queues.get(&names.queue)?.clone(),
            dead_letters: known.queues.get(&names.dead_letters)?.clone(),
        })
    }

    /// Forgets a destination that somebody deleted, so that its next use declares it again.
    pub(crate) fn forget(&self, address: &str) {
        let mut known = self.known();
        known.groups.clear();
        known.queues.retain(|_, url| **url != *address);
        known.topics.retain(|_, arn| **arn != *address);
    }

    /// Forgets a topic and its groups, so that to declare them looks anew whether they are there.
    pub(crate) fn forget_topic(&self, topic: &Destination) -> Result<()> {
        let name = names::of_topic(self.prefix(), topic)?;
        let mut known = self.known();
        if let Some(arn) = known.topics.remove(&name) {
            known.groups.retain(|_, topic| topic.as_ref() != Some(&arn));
        }
        Ok(())
    }

    /// Maps a call about this address that failed. What was created here just now is not missing.
    pub(crate) fn failed<E>(
        &self,
        operation: &'static str,
        address: &str,
        error: SdkError<E, HttpResponse>,
    ) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let error = failed(operation, address, error);
        let created = self.known().created.get(address).copied();
        if error.kind() == ErrorKind::NotFound && created.is_some_and(|at| at.elapsed() < FRESH) {
            let text = format!("{address}: AWS does not know everywhere yet what was just created");
            return error_of(ErrorKind::Blocked, operation, text);
        }
        error
    }

    fn created(&self, address: &Arc<str>) {
        self.known().created.insert(Arc::clone(address), Instant::now());
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn queue(
        &self,
        name: &str,
        dead_letters: Option<&str>,
        topic: Option<&str>,
    ) -> Result<Arc<str>> {
        if let Some(url) = self.known().queues.get(name) {
            return Ok(Arc::clone(url));
        }
        let url = match self.url(name).await? {
            Some(url) => url.into(),
            None if self.settings.options.declare == Declare::Off => {
                return Err(missing("queue", name));
            }
            None => {
                let other = names::other_shape(name);
                if self.url(&other).await?.is_some() {
                    return Err(mismatch("queue", name, &other));
                }
                if self.settings.options.declare == Declare::Verify {
                    return Err(missing("queue", name));
                }
                self.create(name, dead_letters, topic).await?
            }
        };
        self.known().queues.insert(name.to_owned(), Arc::clone(&url));
        Ok(url)
    }

    async fn url(&self, name: &str) -> Result<Option<String>> {
        match self.clients.calls.get_queue_url().queue_name(name).send().await {
            Ok(found) => Ok(found.queue_url),
            Err(error) => match failed(DECLARE, &format!("queue {name:?}"), error) {
                error if error.kind() == ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn create(
        &self,
        name: &str,
        dead_letters: Option<&str>,
        topic: Option<&str>,
    ) -> Result<Arc<str>> {
        let mut create = self
            .clients
            .calls
            .create_queue()
            .queue_name(name)
            .attributes(Attribute::MessageRetentionPeriod, RETENTION_SECONDS.to_string())
            .attributes(Attribute::MaximumMessageSize, SQS_BYTES.to_string());
        if name.ends_with(FIFO) {
            create = create
                .attributes(Attribute::FifoQueue, "true")
                // Order and de-duplication by group: 300 calls a second for each, not for all.
                .attributes(Attribute::DeduplicationScope, "messageGroup")
                .attributes(Attribute::FifoThroughputLimit, "perMessageGroupId");
        }
        if let Some(dead_letters) = dead_letters {
            let arn = self.queue_arn(dead_letters).await?;
            let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": MOST_RECEIVES });
            create = create.attributes(Attribute::RedrivePolicy, policy.to_string());
        }
        if let Some(topic) = topic {
            // A queue's policy speaks of that queue alone, whatever resource it names.
            let policy = json!({ "Version": "2012-10-17", "Statement": [{
                "Effect": "Allow",
                "Principal": { "Service": "sns.amazonaws.com" },
                "Action": "sqs:SendMessage",
                "Resource": "*",
                "Condition": { "ArnEquals": { "aws:SourceArn": topic } },
            }] });
            create = create.attributes(Attribute::Policy, policy.to_string());
        }
        let what = format!("queue {name:?}");
        let created = create.send().await.map_err(|error| failed(DECLARE, &what, error))?;
        let url = created.queue_url.map(Arc::from);
        let url = url.ok_or_else(|| error_of(ErrorKind::Broker, DECLARE, "no URL came back"))?;
        self.created(&url);
        Ok(url)
    }

    async fn queue_arn(&self, url: &str) -> Result<String> {
        let get = self.clients.calls.get_queue_attributes().queue_url(url);
        let found = get.attribute_names(Attribute::QueueArn).send().await;
        let mut found = found.map_err(|error| self.failed(DECLARE, url, error))?;
        let arn = found.attributes.as_mut().and_then(|all| all.remove(&Attribute::QueueArn));
        arn.ok_or_else(|| error_of(ErrorKind::Broker, DECLARE, "no ARN came back"))
    }
}

/// Repeats what the broker has not done yet because it was asked too often or too early.
async fn patiently<T, F: Future<Output = Result<T>>>(declare: impl Fn() -> F) -> Result<T> {
    let began = Instant::now();
    let mut failures = 0;
    loop {
        match declare().await {
            Err(error) if error.kind() == ErrorKind::Blocked && began.elapsed() < PATIENCE => {
                tracing::warn!(%error, "declaring again");
                failures += 1;
                pause(failures).await;
            }
            done => return done,
        }
    }
}

fn missing(what: &str, name: &str) -> Error {
    let text = format!("{what} {name:?} does not exist; create it, or connect with declare=create");
    error_of(ErrorKind::NotFound, DECLARE, text)
}

fn mismatch(what: &str, asked: &str, found: &str) -> Error {
    let shape = |name: &str| if name.ends_with(FIFO) { "ordered" } else { "not ordered" };
    let text = format!(
        "{what} {asked:?} ({}) was asked for, but there is {found:?} ({}); use the same shape on all sides, or delete it",
        shape(asked),
        shape(found)
    );
    error_of(ErrorKind::Mismatch, DECLARE, text)
}
