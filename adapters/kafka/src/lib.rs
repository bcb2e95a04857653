//! Apache Kafka adapter of anybroker, on librdkafka; for Kafka 3.9 and later.
//!
//! | anybroker | Kafka |
//! |---|---|
//! | queue | topic, with one consumer group of its name |
//! | topic | topic |
//! | group | consumer group `topic--group` |
//! | retry, release or delay | topic `…--retry`, read by the same group alone |
//! | dead-letter queue | topic `…--dlq` of one partition |
//! | key | the record's key; Java's partitioner |
//! | envelope | CloudEvents' Kafka binding: headers `ce_*` and `content-type`, payload as it is |
//!
//! Any client's messages are read, structured events too. A null payload counts as empty, a key
//! that is no text as its hexadecimal digits; an empty payload is stored as empty, never as null.
//!
//! # Guarantee
//! The producer is idempotent, with `acks=all`: a publish is confirmed once all replicas in sync
//! have it. How many must be is the topic's `min.insync.replicas`: set it to 2, with
//! `replication=3`. A retry, a delayed release and a dead letter are stored anew, with the same
//! confirmation, before the original counts as finished; a crash in between leaves a duplicate.
//!
//! A confirmed message may be stored twice where a publish on the same connection ran into its timeout
//! meanwhile, or a broker forgot the producer: the client then takes a new producer id, under which it
//! sends again what was not answered yet, and the broker knows it by its number only.
//!
//! A batch that the broker refuses for one of its records is sent again, each record by itself: the
//! error is that record's alone.
//!
//! Retry and dead-letter topics keep messages for ever; what is finished is deleted once a minute
//! (`DeleteRecords`). The topics themselves keep what the broker or you say (`retention.ms`, a week
//! by default): messages that are gone before a group has handled them are an error of its
//! consumers (`NotFound`, with the offsets), not a skip. A group without members loses its offsets
//! after a week (`offsets.retention.minutes`): it then begins at the oldest message that is kept. So it
//! does in a topic that was deleted and made again, which has another id than its commits name.
//!
//! # Time
//! Topics are created with `message.timestamp.type=LogAppendTime`: a delay and an expiry count from when
//! the broker stored a message, whatever the publisher's clock shows. In a topic that has the publisher's
//! time (`CreateTime`) they are taken as they are written.
//!
//! # Settlement
//! `Ok` means recorded in this process ([`Recorded`](anybroker_core::SettlementProof::Recorded)).
//! Ten times a second the group commits, for each partition, the offset up to which all is
//! finished, and in the commit's metadata what is finished beyond it. So a process that ends in
//! order repeats nothing, however slow its oldest message is; one that is killed repeats what it
//! finished since the last commit. The metadata have 4 KiB: of more than some hundred gaps, the
//! later ones are repeated.
//!
//! When another process of the group joins, no handler is started any more for the partitions that
//! go to it, those that run have 10 s to finish, and then all is committed. What is settled later is
//! `StaleDelivery`.
//!
//! # Attempts
//! Kafka counts nothing. Retries are counted in the copy's header. The metadata of the commit also
//! say how far messages may have been handed out, which is committed before they are: after a
//! process was killed, those within come back as attempt 2, though some were only waiting. After a
//! second time in a row they are suspects: those of a partition run together once more, and nothing
//! else of their partition beside them, for 30 s at most; other partitions go on. What is tried is
//! committed before, and only that is counted from then on. If the process ends again, half as many
//! are tried together, and so on; if they pass, the next lot is twice as large. A suspect on its last
//! attempt runs while no other suspect of its process does. So a message that kills its process goes to
//! the dead-letter queue after its `max_deliveries`, none of its neighbours does, and where the network
//! was to blame a few trials clear all.
//!
//! # Ordering
//! Messages of one key are in one partition, and a partition is one process's. An `ordered()`
//! subscription handles the messages of a partition in one loop, and keeps a key back while one of
//! its messages waits; a window full of messages that are kept back stops their partition. A
//! killed process, a broker's failure or a rebalance repeats messages, but lets none overtake. What
//! is redriven has no place among later ones.
//!
//! # Limits
//! - At most as many processes of a group are at work as the topic has partitions: others wait, with
//!   a warning in the log. In a process any number of consumers share what it is assigned. Create
//!   topics with enough partitions (`partitions=`, or stated by the queue or topic): adding some
//!   later moves keys.
//! - A delayed message takes memory until it is due, in the process that is assigned its partition.
//!   With more than 10,000 of them in a partition, those behind may be late.
//! - A partition that holds 100,000 finished messages behind an unfinished one is not read on.
//! - [`Depth`](anybroker_core::Depth) counts up to 1,000 messages of a partition one by one. Beyond,
//!   it is the lag, which the markers of transactions and compaction make an upper bound. `in_flight`
//!   is as of each process's last commit.
//! - Whether a topic has groups is not seen when publishing: it keeps the message.
//! - Share groups (KIP-932) are not used, since the client does not know them; they would take the
//!   place of the tracker of finished offsets (`partition`, `position`), and of nothing else.
//! - To publish to a topic that takes less than `max-payload` (its `max.message.bytes`) is a
//!   `Mismatch`: it would refuse whole batches, and with a message that is too large those beside it.
//!   So is a retry or dead-letter topic that takes less than the group's: what did not fit would come
//!   back for ever. With `declare=off`, by `OAUTHBEARER`, or without the right to describe
//!   configurations that is not looked at.
//!
//! # Dead letters
//! Looking reads the topic. A redrive is one transaction for each 500 letters: the copies, and a
//! mark in the dead-letter topic that they are gone. Of several at the same time the later one fences
//! the earlier off, which then begins anew. Emptying deletes what was there at the start.
//!
//! # Options
//! | in the URL | builder | |
//! |---|---|---|
//! | `kafka+ssl://` | | TLS; needs the feature `tls`, which is on by default |
//! | `user:password@` | `credentials` | by SASL |
//! | `sasl=plain` | `sasl` | or `scram-sha-256`, `scram-sha-512`, which need the feature `tls` too |
//! | | `oauth_token` | by `OAUTHBEARER`, with tokens of yours; topics must exist; needs the feature `tls` too |
//! | `ca=/path` | `ca` | trusted instead of the system's authorities |
//! | `cert=/path&key=/path` | `client_certificate` | what the broker is shown |
//! | `prefix=dev` | `prefix` | put before each name, with a dot |
//! | `declare=create` | `declare` | who creates: `create`, `verify` or `off` |
//! | `partitions=4` | `partitions` | of topics that are created and do not state it |
//! | `replication=` | `replication` | of topics that are created; the broker's default |
//! | `connect=once` | `wait_for_broker` | `wait` keeps trying |
//! | `publish-timeout=30s` | `publish_timeout` | for a publish, waiting for a connection included |
//! | `max-payload=1048576` | `max_payload` | the topics' `max.message.bytes`, which those that are created get where it is more than the default |
//! | `group-protocol=classic` | `group_protocol` | or `consumer` (KIP-848; an older broker than Kafka 4 gives it nothing, with a warning) |
//! | `session-timeout=10s` | `session_timeout` | how long a killed process's messages wait; 6 s or more |
//! | `unreadable=stop` | `unreadable` | what becomes of a batch that cannot be unpacked: `stop` or `skip` |
//! | | `native_option` | any option of librdkafka |
//!
//! A session of the `consumer` protocol is the broker's (`group.consumer.session.timeout.ms`, 45 s).
//! [`KafkaBroker::client_config`] answers what the client's handles are made with, for what only
//! Kafka can do.
//!
//! # Rights
//! Beside reading and writing the topics: `Create` and `Describe` for `declare=create`;
//! `DescribeConfigs`, to be told of a topic that takes too little; `Delete` on retry and dead-letter
//! topics to trim them; the transactional id `…--dlq` to redrive.

mod arrivals;
mod ask;
mod broker;
mod clerk;
mod client;
mod cluster;
mod commands;
mod dead_letters;
mod depth;
mod desk;
mod error;
mod handle;
mod identity;
mod isolation;
mod limits;
mod membership;
mod message;
mod names;
mod options;
mod partition;
mod position;
mod publish;
mod reader;
mod route;
mod scan;
mod settle;
mod tls;
mod topology;
mod trial;
mod unreadable;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};

pub use broker::KafkaBroker;
pub use options::{GroupProtocol, KafkaBuilder, Sasl, UnreadableBatches};
pub use rdkafka;

/// Connects to `kafka://user:password@host:port,host:port?option=value`, or `kafka+ssl://`.
///
/// # Errors
/// As [`KafkaBuilder::connect`].
pub async fn connect(url: BrokerUrl) -> Result<Arc<KafkaBroker>> {
    KafkaBroker::builder().url(url)?.connect().await
}
