//! Redis Streams adapter of anybroker; for Redis 7.0 and later, and Valkey.

mod broker;
mod consume;
mod dead_letters;
mod durability;
mod error;
mod held;
mod idempotency;
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
