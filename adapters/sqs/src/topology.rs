mod topics;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anybroker_core::adapter::{SharedTask, pause};
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
pub(crate) struct Topology {
    pub(crate) clients: Clients,
    pub(crate) settings: Settings,
    known: Mutex<Known>,
    /// What is being declared, by name: a deadline ends the wait for it, and not the declaration,
    /// which others wait for too.
    groups: Declarations<Group>,
    topics: Declarations<Arc<str>>,
    /// What the ARNs of this account's topics begin with, once there is one.
    arns: OnceLock<String>,
    turns: Semaphore,
}

type Declarations<T> = Mutex<HashMap<String, Arc<SharedTask<T>>>>;

#[derive(Debug, Default)]
struct Known {
    /// By the name of the queue.
    groups: HashMap<String, Group>,
    /// By name.
    topics: HashMap<String, Arc<str>>,
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
    /// Of a topic's group; none where nothing is asked about it.
    feed: Option<Arc<Feed>>,
}

/// What a group's subscription in SNS is about, by ARN.
#[derive(Debug)]
struct Feed {
    topic: Arc<str>,
    queue: String,
    dead_letters: String,
}

/// What of a group is there.
#[derive(Debug)]
pub(crate) struct Found {
    /// The queue's URL.
    pub(crate) queue: Option<Arc<str>>,
    /// The dead-letter queue's URL.
    pub(crate) dead_letters: Option<Arc<str>>,
}

impl Topology {
    pub(crate) fn new(clients: Clients, settings: Settings) -> Self {
        let turns = Semaphore::new(DECLARATIONS);
        let known = Mutex::default();
        let (groups, topics) = (Mutex::default(), Mutex::default());
        Self { clients, settings, known, groups, topics, arns: OnceLock::new(), turns }
    }

    pub(crate) fn prefix(&self) -> Option<&str> {
        self.settings.options.prefix.as_deref()
    }

    /// Creates or checks what a subscription needs, whatever was there before: somebody may have
    /// deleted it, and a topic that was made again has lost its subscriptions. Slowed down it
    /// waits.
    pub(crate) async fn declare(self: &Arc<Self>, subscription: &Subscription) -> Result<Group> {
        patiently(|| self.declare_group(subscription)).await
    }

    /// The same for a topic.
    pub(crate) async fn declare_topic(self: &Arc<Self>, topic: &Destination) -> Result<Arc<str>> {
        patiently(|| self.make_topic(topic)).await
    }

    /// The group of a subscription, created or checked at first use.
    pub(crate) async fn group(self: &Arc<Self>, subscription: &Subscription) -> Result<Group> {
        let names = names::of_subscription(self.prefix(), subscription)?;
        let known = self.known().groups.get(&names.queue).cloned();
        match known {
            Some(group) => Ok(group),
            None => self.declare_group(subscription).await,
        }
    }

    async fn declare_group(self: &Arc<Self>, subscription: &Subscription) -> Result<Group> {
        let names = names::of_subscription(self.prefix(), subscription)?;
        let declaration = shared(&self.groups, &names.queue);
        let (this, subscription) = (Arc::clone(self), subscription.clone());
        declaration.run(|| async move { this.make_group(&subscription, names).await }).await
    }

    async fn make_group(
        self: &Arc<Self>,
        subscription: &Subscription,
        names: names::Names,
    ) -> Result<Group> {
        let destination = subscription.destination();
        let topic = match destination {
            Destination::Topic(_) => Some(self.make_topic(destination).await?),
            Destination::Queue(_) => None,
        };
        let _turn = self.turns.acquire().await;
        let dead_letters = self.queue(&names.dead_letters, None, topic.as_deref()).await?;
        let queue = self.queue(&names.queue, Some(&dead_letters), topic.as_deref()).await?;
        let feed = match topic {
            Some(topic) if self.settings.options.declare != Declare::Off => {
                let (of_queue, of_dead_letters) =
                    (self.queue_arn(&queue).await?, self.queue_arn(&dead_letters).await?);
                let feed = Feed { topic, queue: of_queue, dead_letters: of_dead_letters };
                self.feed(&feed).await?;
                Some(Arc::new(feed))
            }
            _ => None,
        };
        let group = Group { queue, dead_letters, feed };
        self.known().groups.insert(names.queue, group.clone());
        Ok(group)
    }

    /// Subscribes a topic's group again, or looks whether it is still subscribed, in one call where
    /// nothing is missing.
    pub(crate) async fn stay_subscribed(
        self: &Arc<Self>,
        subscription: &Subscription,
    ) -> Result<()> {
        let Some(feed) = self.group(subscription).await?.feed else { return Ok(()) };
        match self.feed(&feed).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.declare(subscription).await.map(drop)
            }
            done => done,
        }
    }

    async fn feed(&self, feed: &Feed) -> Result<()> {
        match self.settings.options.declare {
            Declare::Create => self.subscribe(feed).await,
            Declare::Verify => self.verify_subscribed(feed).await,
            Declare::Off => Ok(()),
        }
    }

    /// Looks for a group. It asks AWS each time, whatever was there before, and creates nothing.
    pub(crate) async fn look(&self, subscription: &Subscription) -> Result<Found> {
        let names = names::of_subscription(self.prefix(), subscription)?;
        if subscription.destination().is_topic() {
            self.sns()?;
        }
        patiently(|| async {
            Ok(Found {
                queue: self.look_for(&names.queue).await?,
                dead_letters: self.look_for(&names.dead_letters).await?,
            })
        })
        .await
    }

    async fn look_for(&self, name: &str) -> Result<Option<Arc<str>>> {
        if let Some(url) = self.url(name).await? {
            return Ok(Some(url.into()));
        }
        let now = Instant::now();
        let is_fresh = |(address, at): (&Arc<str>, &Instant)| {
            now - *at < FRESH && address.rsplit('/').next() == Some(name)
        };
        if self.known().created.iter().any(is_fresh) {
            return Err(unknown_yet(DECLARE, &format!("queue {name:?}")));
        }
        Ok(None)
    }

    /// Forgets a queue that somebody deleted, so that its next use declares its group again.
    pub(crate) fn forget(&self, queue: &str) {
        let is_of = |group: &Group| *group.queue == *queue || *group.dead_letters == *queue;
        self.known().groups.retain(|_, group| !is_of(group));
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
        if error.kind() == ErrorKind::NotFound && self.is_fresh(address) {
            return unknown_yet(operation, address);
        }
        error
    }

    /// Whether it was created here just now.
    fn is_fresh(&self, address: &str) -> bool {
        let created = self.known().created.get(address).copied();
        created.is_some_and(|at| at.elapsed() < FRESH)
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
        match self.url(name).await? {
            Some(url) => Ok(url.into()),
            None if self.settings.options.declare == Declare::Off => Err(missing("queue", name)),
            None => {
                let other = names::other_shape(name);
                if self.url(&other).await?.is_some() {
                    return Err(mismatch("queue", name, &other));
                }
                if self.settings.options.declare == Declare::Verify {
                    return Err(missing("queue", name));
                }
                self.create(name, dead_letters, topic).await
            }
        }
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

/// The declaration of this name.
fn shared<T>(declarations: &Declarations<T>, name: &str) -> Arc<SharedTask<T>>
where
    T: Clone + Send + Sync + 'static,
{
    let mut declarations = declarations.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(declarations.entry(name.to_owned()).or_default())
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology").field("settings", &self.settings).finish_non_exhaustive()
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

fn unknown_yet(operation: &'static str, what: &str) -> Error {
    let text = format!("{what}: AWS does not know everywhere yet what was just created");
    error_of(ErrorKind::Blocked, operation, text)
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
