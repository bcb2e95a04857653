//! The memory broker of anybroker: queues, topics and groups within one process, with the same
//! contract as the brokers outside of it.
//!
//! `memory://` is a fresh broker each time; `memory://name` is a connection to the one broker of
//! that name in the process, which lives as long as the process does. Messages are in memory only:
//! they end with it.
//!
//! | option | meaning | default |
//! |---|---|---|
//! | `capacity` | messages that may wait or be delayed in a group before a send waits | 1000000 |
//! | `publish-timeout` | how long a send waits for room before it answers `Blocked` | 30s |
//! | `declare` | `create`, `verify` or `off` | `create` |
//! | `prefix` | keeps apart what connections to one name see under different prefixes | none |
//! | `max-payload` | the largest payload, in bytes | 67108864 (64 MiB) |
//!
//! ```
//! # use anybroker_core::{Broker, Depth, Envelope, Outgoing, Queue, Subscription};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> anybroker_core::Result<()> {
//! let broker = anybroker_memory::connect("memory://?capacity=1000".parse()?).await?;
//! let order = Envelope::new("order.place", r#"{"id":7}"#);
//! broker.producer().send(Outgoing::new(Queue::new("order.place"), order)).await?;
//! assert_eq!(broker.depth(&Subscription::queue("order.place")).await?.ready, Some(1));
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//! Delays, leases and timeouts follow tokio's clock, to the millisecond and never early, so that
//! `tokio::time::pause` and `advance` drive them.
//!
//! # Order
//! A group hands messages out in the order of their sends. What is given back (released, dropped,
//! lease run out) goes to the front; a retry is a new copy, at the back. In an ordered group a
//! message that is in flight, retried, released or delayed holds its place: no later message of its
//! key is handed out before it is settled for good.

mod blocked;
mod broker;
mod config;
mod connection;
mod consumer;
mod dead_letters;
mod destination;
mod entry;
mod group;
mod in_flight;
mod lanes;
mod producer;
mod settler;
mod signals;
mod store;

pub use broker::{MemoryBroker, connect};
pub use config::MemoryBrokerBuilder;
