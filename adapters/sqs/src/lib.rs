//! SQS and SNS adapter of anybroker, over the AWS SDK.
//!
//! | anybroker | SQS and SNS |
//! |---|---|
//! | queue | queue; ordered: FIFO queue `….fifo` |
//! | topic | SNS topic; ordered: FIFO topic `….fifo` |
//! | group | queue `topic--group`, subscribed with raw delivery; its policy lets the topic send to it, and the subscription has a redrive policy to the dead-letter queue |
//! | dead-letter queue | queue `…--dlq` |
//! | envelope | body: a structured `CloudEvents` event in JSON, binary payloads in base64 |
//! | key | message group; its SHA-256 where SQS does not take it; without key a group of its own |
//! | stored copy | de-duplication id: SHA-256 of source, id and hop |
//! | lease | visibility timeout, in whole seconds |
//! | delay | `DelaySeconds` up to 15 minutes, visibility up to 12 hours, and stored anew for the rest |
//!
//! A `.` in a name becomes `_`, a prefix is joined by `--`. What is created keeps messages for 14
//! days, takes 1 MiB, and has a redrive policy of 1000 receives as a safety net: what SQS itself
//! moves by it is listed and sent back as any other dead letter. An existing queue is used as it is.
//!
//! # Guarantee
//! A publish is confirmed once SQS or SNS has answered for its entry of the batch. A retry, a
//! release and a dead letter are stored anew, with that answer, before the original is deleted. A
//! send that may have been stored is not repeated but [`Ambiguous`](anybroker_core::RetryClass),
//! except on FIFO, whose de-duplication makes it harmless for five minutes. SNS answers for the
//! topic: what a group's queue refuses goes to its dead-letter queue, and a topic without groups
//! keeps nothing and says nothing. A new subscription may take AWS some time to be served.
//!
//! # Settlement
//! `Ok` means that SQS has deleted the message and that the lease had not run out by the local
//! clock. A standard queue delivers a message twice now and then.
//!
//! # Attempts
//! They are the receive count of the stored copy and what earlier copies used up. A crash counts
//! for all that was received. So that a message which ends its process takes no neighbours along
//! into the dead-letter queue, a consumer begins with one message at a time, and hands out alone
//! what has come back a quarter of `max_deliveries`, at least twice, for 30 s at most. This holds
//! for each consumer; a worker has one for each subscription that is not ordered. A receive that a
//! killed process had open still takes what is sent meanwhile, and that counts; it ends before the leases of what
//! the process held, if those are 3 s or more.
//!
//! A message of an ordered queue cannot be stored anew without losing its place: it goes back by
//! its visibility, which SQS counts like a crash. Its first 100 returns are therefore not counted,
//! and attempts that the worker counted begin anew with the next process.
//!
//! # Ordering
//! SQS keeps the order within a message group and holds the group back while one of its messages
//! is out. What comes after a message that goes back goes back with it. The partitions of a queue
//! or topic mean nothing more. A single group of a topic cannot be ordered alone. A delayed publish
//! in order, which FIFO does not have, waits at its place in the worker. SQS hides a message
//! [12 hours](https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html)
//! from its receipt at most: what has to wait longer in order is stored anew, behind what has come
//! since, and its group goes on without it meanwhile.
//!
//! # Limits
//! | | |
//! |---|---|
//! | payload in a queue | 720 KiB: 1 MiB, less 64 KiB for what retries add, in base64 |
//! | payload in a topic | 144 KiB, of 256 KiB |
//! | a message with all its headers | 1 MiB less 1 KiB in a queue, 256 KiB in a topic, as JSON writes it: a quotation mark takes two bytes, a control character six. What is larger is refused when it is published; the error of a dead letter is cut to what is left |
//! | somebody else's message | as large as SQS takes it; past 720 KiB, unless it is JSON, it cannot be stored anew: it goes back by its visibility, with SQS's count, and to the dead-letter queue by the redrive policy alone |
//! | hold of a delivery | 12 h |
//! | in flight | about 120,000 of a queue, 20,000 of a FIFO queue; what is hidden for its time counts |
//! | prefix, name and group | 80 characters with what is joined to them |
//!
//! # Options
//! | in the URL | builder | |
//! |---|---|---|
//! | `sqs://eu-central-1` | `region` | without one, the SDK's chain |
//! | `sqs+http://host:port` | `endpoint` | another server than AWS, with any credentials |
//! | `key:secret@` | `credentials` | without, the SDK's chain: environment, profile, role |
//! | `region=us-east-1` | `region` | the region that is signed with, for another server |
//! | `sns=http://host:port` | `sns_endpoint` | SNS at another address than SQS |
//! | `sns=off` | `without_sns` | topics are `Unsupported` |
//! | `prefix=dev` | `prefix` | put before each name, with `--` |
//! | `declare=create` | `declare` | who creates: `create`, `verify` or `off` |
//! | `connect=once` | `wait_for_broker` | `wait` keeps trying |
//! | `publish-timeout=30s` | `publish_timeout` | for a publish, its declaration included |
//! | `poll=5s` | `poll` | how long a receive waits, 1 to 20 s, at most a third of the lease; a close waits for the last one |
//!
//! The feature `sso` adds the credentials of `aws sso login`.
//!
//! # Rights
//! | | `sqs:` | `sns:`, for topics |
//! |---|---|---|
//! | `declare=off` | `GetQueueUrl`, `SendMessage`, `ReceiveMessage`, `DeleteMessage`, `ChangeMessageVisibility`; `GetQueueAttributes` for a depth | `ListTopics`, `Publish` |
//! | `declare=verify` | also `GetQueueAttributes` | also `GetTopicAttributes`, `ListSubscriptionsByTopic` |
//! | `declare=create` | as `verify`, and `CreateQueue` | as `off`, and `GetTopicAttributes`, `CreateTopic`, `Subscribe` |
//!
//! A batch is allowed by the right to the single action. `sqs:ListQueues` is asked for by `connect`
//! and `health`, and may be missing. A queue or topic with a key of your own in KMS takes
//! `kms:GenerateDataKey` and `kms:Decrypt`, and SNS needs both for an encrypted queue of a group.
//! [SQS](https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsqs.html),
//! [SNS](https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsns.html).
//!
//! # Created, deleted, slowed down
//! AWS may not know a queue for [a second](https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html)
//! after it was created: what this connection created counts as missing after 5 s only, and is
//! tried again until then. The same page keeps the name of a deleted queue for 60 s: `declare` and
//! `consume` wait up to 75 s, a publish until its timeout, and the error says so.
//!
//! A topic that was deleted answers a publish with
//! [`NotFound`](https://docs.aws.amazon.com/sns/latest/api/API_Publish.html), which is an error and
//! stays one: with it all subscriptions are gone, and created anew by a publisher it would take
//! messages for nobody. `declare` a subscription to have both again.
//!
//! The consumer of a topic's group subscribes it again about once a minute (12 times `poll`), since SNS
//! tells nobody that a subscription was deleted, or a topic deleted and made again. Who declares
//! or consumes asks AWS anew, whatever the connection has found before. A queue that was deleted
//! ends its consumer with `NotFound`; a worker opens another one, which makes it again. Who only
//! looks (`depth`, dead letters) makes nothing.
//!
//! What AWS refuses as one too many, by its own quotas or those of KMS, is `Blocked` and done again
//! with a growing and random pause: sends until their timeout, declarations for 75 s, deletes until
//! the lease runs out, receives for ever. Of a call that stores nothing the SDK makes three attempts
//! first. SNS limits how often an account may
//! [declare](https://docs.aws.amazon.com/general/latest/gr/sns.html); a connection declares four
//! groups or topics at once.
//!
//! # Dead letters
//! SQS has no cursor: who looks hides what it has seen until it is done, at most two minutes. Two
//! who look at once see a part each, and of one key in order ten are seen at most: a peek is never
//! complete. A redrive is this adapter's own, not `StartMessageMoveTask`, which knows no filter and
//! would send back attempts and failure too.
//!
//! # What emulators hide
//! The tests run on `ElasticMQ` and `MiniStack`. Neither checks credentials, policies or quotas.
//! AWS delivers a standard queue's messages twice and out of order now and then, and counts
//! approximately ([`Depth`](anybroker_core::Depth) too); both emulators are exact. They know a queue
//! at once and give a deleted one's name again at once, and slow nobody down; a proxy says in the
//! tests what AWS would. `MiniStack` delivers a topic's messages before it answers, AWS later, and
//! keeps nothing when it is killed. `ElasticMQ` ignores `MaximumMessageSize`, and holds receives of
//! one process at most a thousand at once.

mod answers;
mod broker;
mod clients;
mod clock;
mod consumer;
mod dead_letters;
mod error;
mod held;
mod lane;
mod message;
mod names;
mod notification;
mod options;
mod places;
mod senders;
mod settler;
mod topology;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};

pub use aws_sdk_sns;
pub use aws_sdk_sqs;
pub use broker::SqsBroker;
pub use options::SqsBuilder;

/// Connects to the region or the server of the URL.
///
/// # Errors
/// `Config`, `Unavailable` or `Denied`, with what to write instead.
pub async fn connect(url: BrokerUrl) -> Result<Arc<SqsBroker>> {
    SqsBroker::builder().url(url)?.connect().await
}
