//! How large messages a topic takes.

use anybroker_core::{Declare, ErrorKind, Result};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};

use crate::error::error_of;
use crate::topology::{ANSWER, Topology};

/// Named by the topic; of a batch, which is what the broker takes or refuses.
pub(crate) const LARGEST: &str = "max.message.bytes";

/// What is sent at most unless the application says otherwise; a topic takes as much unless it does.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024;

/// Refuses a topic that takes less than is sent to it: the broker would refuse whole batches, and
/// with a message that is too large those beside it.
///
/// # Errors
/// `Mismatch`. Who may not ask for the topic's configuration learns of it by what is refused.
pub(crate) async fn check(topology: &Topology, topic: &str) -> Result<()> {
    let settings = &topology.clients.settings;
    if settings.options.declare == Declare::Off {
        return Ok(());
    }
    let sent = settings.server.max_payload;
    match taken(topology, topic).await {
        Some(taken) if taken < sent => {
            let text = format!(
                "topic {topic:?} takes messages of up to {taken} bytes, and up to {sent} are sent: connect with max-payload={taken}, or raise the topic's {LARGEST}"
            );
            Err(error_of(ErrorKind::Mismatch, "declare", text))
        }
        _ => Ok(()),
    }
}

async fn taken(topology: &Topology, topic: &str) -> Option<usize> {
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let asked = [&ResourceSpecifier::Topic(topic)];
    let answered = topology.admin("declare").ok()?.describe_configs(asked, &options).await;
    let config = answered.ok()?.pop()?.ok()?;
    config.get(LARGEST)?.value.as_deref()?.parse().ok()
}
