//! SQS and SNS.

mod broker;
mod clients;
mod consumer;
mod dead_letters;
mod error;
mod held;
mod lane;
mod message;
mod names;
mod options;
mod senders;
mod settler;
mod topology;

use std::sync::Arc;

use anybroker_core::{BrokerUrl, Result};
pub use broker::SqsBroker;
pub use options::SqsBuilder;

/// Connects to the region or the server of the URL.
///
/// # Errors
/// `Config`, `Unavailable` or `Denied`, with what to write instead.
pub async fn connect(url: BrokerUrl) -> Result<Arc<SqsBroker>> {
    SqsBroker::builder().url(url)?.connect().await
}
