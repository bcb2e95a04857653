//! Apache Kafka adapter of anybroker.

mod broker;
mod client;
mod commands;
mod dead_letters;
mod depth;
mod desk;
mod error;
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
mod topology;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};

pub use broker::KafkaBroker;
pub use options::{GroupProtocol, KafkaBuilder, Sasl};
pub use rdkafka;

/// Connects to `kafka://user:password@host:port,host:port?option=value`, or `kafka+ssl://`.
///
/// # Errors
/// As [`KafkaBuilder::connect`].
pub async fn connect(url: BrokerUrl) -> Result<Arc<KafkaBroker>> {
    KafkaBroker::builder().url(url)?.connect().await
}
