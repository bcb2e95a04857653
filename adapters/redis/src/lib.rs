//! Redis Streams adapter of anybroker; for Redis 7.0 and later, and Valkey.
//!
//! | anybroker | Redis |
//! |---|---|
//! | queue, topic | stream `name`, or `{name}--p0`, `{name}--p1` … where it has partitions |
//! | group | consumer group of that stream; a queue's has the queue's name |
//! | what a group gets again | stream `{name}--group--retry`, read beside the first |
//! | delay | sorted set `{name}--group--delayed`, moved to the former when due |
//! | dead-letter queue | stream `{name}--group--dlq` |
//! | owner of an ordered partition | key `{name}--group--lock` |
//! | processes of an ordered group | sorted set `{name}--group--members` |
//! | how it was declared, what we made, how far its groups are | hash `{name}--meta` |
//!
//! With a prefix, `name` is `prefix--name`. All keys of a destination share the hash slot of its
//! name, so that they can live in a cluster; the adapter itself connects to one node, and answers
//! `Unsupported` for a destination that is on another.
//!
//! An entry has the fields of the CloudEvents attributes (`ce_id`, `ce_type` …), `content-type` and
//! `data`. Any other entry is delivered too: its id is where it is stored, and its fields are in
//! the header `nativeheaders`.
//!
//! # Guarantee
//! A publish is confirmed when the server has answered `XADD`. What that is worth is set on the
//! server:
//!
//! | setting | needed | otherwise |
//! |---|---|---|
//! | `maxmemory-policy` | `noeviction` | short of memory, the server removes messages |
//! | `appendonly` | `yes` | a restart loses what came after the last snapshot |
//! | `appendfsync` | `always` | a crash of the machine loses up to a second (`everysec`) or more (`no`) |
//!
//! They are looked at on connecting; what breaks the guarantee is a warning in the log, or refused
//! with `durability=require`. [`RedisBroker::durability`] asks again. A fail-over to a replica can
//! lose what was confirmed, since Redis replicates after it has answered: `min-replicas-to-write`
//! makes that rarer, and nothing here rules it out.
//!
//! A retry, a delayed release and a dead letter are stored and the original acknowledged by one
//! script, in that order: if the first fails, the second does not happen. Short of memory
//! (`maxmemory`), a publish or a redrive fails with `Blocked`; consuming and settling go on, copies
//! included, since only they make room.
//!
//! # Settlement
//! `Ok` means that the server has done it, and that the delivery was still this consumer's: every
//! settlement is a script that compares consumer and delivery count first. What comes too late is
//! `StaleDelivery`. A settlement whose connection is lost before the answer is sent again; where the
//! first may have taken effect, it is `Ambiguous`.
//!
//! # Leases and attempts
//! A delivery is hidden for the lease of its [`Subscription`](anybroker_core::Subscription) and may
//! be renewed for ever. A killed process's deliveries come again when the lease is over, to whichever
//! consumer looks first, each half second. Consumers of a group should state the same lease.
//!
//! Leases end by the server's clock. Set forward, it ends them at once, and what is in hand is
//! delivered twice; set back, it hides for that much longer what a crashed consumer left.
//!
//! Attempts are the server's delivery count and what earlier copies used up. A release does not
//! count; a crash counts for all that the process was sent. So that a message which ends its process
//! takes no neighbours along into the dead-letter queue, what was delivered twice without being
//! settled is held by a connection one at a time, for up to 30 s.
//!
//! # Ordering
//! An ordered group has one owner for each partition, who holds a lock for the length of a lease
//! and renews it. Reading, claiming and settling in order check the lock in the same script, so that
//! a process that stood still for longer than that reads and settles nothing more. What is retried or
//! released keeps its place: nothing later is handed out until it was. The connections of a group
//! share its partitions evenly, rounded up: each takes one more each half second. When another
//! connection comes, each gives up what is beyond its share, a partition once its handlers have
//! settled all they have of it. If they have not within a lease, it stays for ten leases more.
//! `redrive` puts a message behind the others.
//!
//! # Trimming
//! What every group has finished is removed, by `XTRIM MINID ~`, two seconds after at the earliest and
//! in lots of about a hundred entries. Nothing is removed while a stream has no group, or a group that
//! nobody consumes: delete such groups with `XGROUP DESTROY`. Whoever trims by `MAXLEN` takes unread
//! messages away; they are missed with an error in the log where they were pending.
//!
//! Only streams that this library made are trimmed, which the hash `{name}--meta` says for all
//! processes. A stream that was there before, or that a producer of another kind made, keeps
//! everything, and grows: trim it yourself, or connect with `trim-foreign=yes`, which takes the
//! history away from whoever reads that stream without a group.
//!
//! # What others delete
//! A group that somebody deleted is made again where all before was finished, as of the last two
//! seconds or so: nothing is missed, and what it handled after that comes once more. What it had
//! delayed or dead-lettered stays. A stream that somebody deleted is made again, and its groups
//! begin at its start. A server that lost all its data knows no group of a topic any more: what is
//! published before the group's worker makes it again is for no group, as with a new one.
//!
//! # Options
//! | in the URL | builder | |
//! |---|---|---|
//! | `prefix=dev` | `prefix` | put before each name, with `--`; none unless set |
//! | `declare=create` | `declare` | who creates: `create`, `verify` or `off` |
//! | `connect=once` | `wait_for_broker` | `wait` keeps trying |
//! | `durability=warn` | `require_durability` | `require` refuses a server that may lose messages |
//! | `trim-foreign=no` | `trim_foreign` | `yes` removes finished messages from streams of others too |
//! | `publish-timeout=30s` | `publish_timeout` | for a publish, waiting for a connection included |
//! | `max-payload=16777216` | `max_payload` | the largest message in bytes |
//! | `ca=/path` | `ca` | trusted instead of the system's authorities |
//! | `cert=/path&key=/path` | `client_certificate` | what the server is shown |
//!
//! The path is the database's number, 0 unless written. Of several hosts (`redis://a,b`), the first
//! that answers and is no replica is used.
//!
//! # Permissions
//! A user needs `+@stream +@scripting +@connection`, `+set +get +del +exists +pexpire +hget +hset`,
//! the sorted-set commands `+zadd +zrem +zrange +zrangebyscore +zcard`, and `+time`, on the keys
//! `name` and `{name}--*`. Without `+config|get` the guarantee is unknown, and without
//! `+client|unblock` a consumer takes half a second to close.
//!
//! # Limits
//! Each consumer has a connection of its own (`maxclients`), and all share two. Delays beyond a
//! century are a century.
//!
//! # Handled messages
//! [`RedisIdempotencyStore`] remembers them for all processes, whatever broker they consume from.

mod broker;
mod consume;
mod dead_letters;
mod durability;
mod error;
mod held;
mod id;
mod idempotency;
mod keep;
mod layout;
mod line;
mod link;
mod message;
mod options;
mod order;
mod publish;
mod reclaim;
mod scripts;
mod settle;
mod topology;
mod upkeep;
mod writer;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};

pub use broker::RedisBroker;
pub use durability::Durability;
pub use idempotency::RedisIdempotencyStore;
pub use options::RedisBuilder;
pub use redis;

/// Connects to `redis://user:password@host:port/database?option=value`, `rediss://`, `valkey://` or
/// `valkeys://`.
///
/// # Errors
/// As [`RedisBuilder::connect`].
pub async fn connect(url: BrokerUrl) -> Result<Arc<RedisBroker>> {
    RedisBroker::builder().url(url)?.connect().await
}
