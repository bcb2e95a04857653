//! RabbitMQ adapter of anybroker, over AMQP 0-9-1; for RabbitMQ 3.10 and later.

mod acks;
mod broker;
mod consume;
mod dead_letters;
mod error;
mod group;
mod lane;
mod link;
mod message;
mod options;
mod publish;
mod settle;
mod topology;

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
