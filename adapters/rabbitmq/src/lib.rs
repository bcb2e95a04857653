//! RabbitMQ adapter of anybroker, over AMQP 0-9-1; for RabbitMQ 3.10 and later.
//!
//! | anybroker | RabbitMQ |
//! |---|---|
//! | queue | durable quorum queue, on the default exchange |
//! | topic | durable topic exchange, the envelope's type as routing key |
//! | group | quorum queue `topic--group`, bound with `#` |
//! | dead-letter queue | quorum queue `…--dlq` |
//! | delay | quorum queues `…--delay-1s`, `-2s`, `-4s` …, made at first use; the rest in the process |
//! | shape | exchange `…--shape` |
//!
//! # Guarantee
//! A publish is confirmed once the quorum queue of every group has it, and is `mandatory`: what no
//! queue takes is `Unroutable`. A retry, a delayed release and a dead letter are stored anew, with
//! a confirm, before the original is acknowledged. RabbitMQ forgets a quorum queue that is killed
//! with its server within half a second after it was made, so the first confirms after making one
//! wait for a second.
//!
//! # Settlement
//! RabbitMQ does not answer acknowledgements: `Ok` means written on the live channel. One that
//! is lost with its connection leaves a duplicate.
//!
//! # Attempts
//! They are what earlier copies used up, and the runs of a copy that came back.
//!
//! For an unordered group those are RabbitMQ's own count, `x-delivery-count`: a crash of a process
//! counts for all that it had prefetched. A crash of the server, or of the network to all consumers
//! at once, may count once for each consumer: until the server has noticed that one is gone, it hands
//! it what another held.
//!
//! An ordered group has many consumers in line for its messages, and the server returns a message
//! once for each dead one. So the runs of what came back are counted in a queue `…--runs` beside the
//! group's own, which keeps one message. A crash counts for all that was prefetched when it came back
//! the first time, and afterwards for what was handed out. What comes back while its process lives
//! counts only if it was handled. Where that queue is missing and may not be made (`verify`, `off`),
//! RabbitMQ's count is taken.
//!
//! A message that came back twice, or once near its limit, may be the one that kills its process. It
//! is handed out alone, for up to 30 s, so that it takes no neighbours along into the dead-letter
//! queue.
//!
//! # Ordering
//! An ordered group has one active consumer for each partition (`x-single-active-consumer`). A
//! queue has as many partitions as it says; a group of a topic has one, whatever it says, since
//! without a plugin RabbitMQ cannot part a topic's messages by their key. A retry or a release waits
//! in the process up to 22.5 min, three quarters of `consumer_timeout`; one that is to wait longer is
//! stored anew, and later messages of its key pass it. At a drain its channel is closed, so that all
//! comes back in order.
//!
//! What a dead consumer held goes to the next one in line. If that has room for less and dies too,
//! what it held comes back behind the rest. So the order holds through crashes as long as all
//! consumers of a group have the same prefetch. A worker asks for one that depends on its concurrency
//! alone.
//!
//! A message that an unordered group releases goes to the end of the queue where RabbitMQ would
//! count the return as an attempt (before 4), and keeps its place elsewhere.
//!
//! # Options
//! | in the URL | builder | |
//! |---|---|---|
//! | `prefix=dev` | `prefix` | put before each name, with a dot |
//! | `declare=create` | `declare` | who creates: `create`, `verify` or `off` |
//! | `connect=once` | `wait_for_broker` | `wait` keeps trying |
//! | `publish-timeout=30s` | `publish_timeout` | for a publish, waiting for a connection included |
//! | `max-payload=16777216` | `max_payload` | the broker's `max_message_size` |
//! | `ca=/path` | `ca` | trusted beside the system's authorities |
//! | `cert=/path&key=/path` | `client_certificate` | what the broker is shown |
//!
//! `verify` sees whether queues and exchanges are there; their shape only with the right to declare.
//! Exchanges of other kinds and filters of bindings are the builder's alone. With `verify` and
//! `off` longer waits use the delay queues that are there, and the process where there is none; the
//! dead-letter queue must be there.
//!
//! # Shape
//! Publisher and worker must state the same shape of a destination; another one is `Mismatch`. It is
//! kept in an exchange `…--shape`, to which nobody publishes. To change the shape of a queue or
//! topic, delete that exchange too.
//!
//! # Deleted by somebody
//! With `declare=create`, queues and exchanges that are deleted are made again, by the next publish or
//! by the worker. A binding that is deleted alone is made again when its worker connects anew.
//!
//! # Logs
//! The client logs what is no error here: queues that are looked for (`lapin` at `ERROR`), and each
//! unroutable message with its payload (`WARN`). Filter `lapin=off`.
//!
//! # Dead letters
//! They are looked at by `basic.get` and put back: in between nobody else sees them.

mod acks;
mod broker;
mod consume;
mod dead_letters;
mod error;
mod frames;
mod group;
mod guard;
mod lane;
mod link;
mod message;
mod options;
mod ordered;
mod publish;
mod runs;
mod settle;
mod shape;
mod stop;
mod suspicion;
mod topology;
mod transport;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};

pub use broker::RabbitmqBroker;
pub use lapin;
pub use options::{Binding, RabbitmqBuilder};

/// Connects to `amqp://user:password@host:port/vhost?option=value`, or `amqps://`.
///
/// # Errors
/// As [`RabbitmqBuilder::connect`].
pub async fn connect(url: BrokerUrl) -> Result<Arc<RabbitmqBroker>> {
    RabbitmqBroker::builder().url(url)?.connect().await
}
