//! How large messages a topic takes, and what goes into it.

use std::time::Duration;

use anybroker_core::{Declare, ErrorKind, Result};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};

use crate::error::error_of;
use crate::topology::Topology;

/// Named by the topic; of a batch, which is what the broker takes or refuses.
pub(crate) const LARGEST: &str = "max.message.bytes";

/// What is sent at most unless the application says otherwise; a topic takes as much unless it does.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024;

/// What a copy of a message may be larger than the message: its headers tell more.
const COPY: usize = 1024 * 1024;

/// As much as they tell at most.
const HOP: usize = 16 * 1024;

/// The most that the client knows, for what is copied: whatever its topic took must fit again.
pub(crate) const COPIES: &str = "1000000000";

/// An answer that can be done without is not waited for any longer.
const GLANCE: Duration = Duration::from_secs(3);

/// Refuses a topic that takes less than is sent to it: the broker would refuse whole batches, and
/// with a message that is too large those beside it.
///
/// # Errors
/// `Mismatch`. Who may not ask for the topic's configuration learns of it by what is refused.
pub(crate) async fn check(topology: &Topology, topic: &str) -> Result<()> {
    let sent = topology.clients.settings.server.max_payload;
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

/// Refuses a topic for copies that takes less than the topic they are made of: what does not fit
/// would neither be retried nor given up, but come back for ever.
///
/// # Errors
/// `Mismatch`.
pub(crate) async fn check_copies(
    topology: &Topology,
    topic: &str,
    (origin, largest): (&str, usize),
) -> Result<()> {
    let least = largest.saturating_add(HOP);
    match taken(topology, topic).await {
        Some(taken) if taken < least => {
            let text = format!(
                "topic {topic:?} takes messages of up to {taken} bytes, and topic {origin:?}, of whose messages it is to hold copies, up to {largest}: raise the {LARGEST} of the first to {}",
                largest.saturating_add(COPY)
            );
            Err(error_of(ErrorKind::Mismatch, "declare", text))
        }
        _ => Ok(()),
    }
}

/// What a topic is to take that holds copies of what another takes.
pub(crate) fn of_copies(topology: &Topology, largest: Option<usize>) -> usize {
    let sent = topology.clients.settings.server.max_payload;
    largest.map_or(sent, |largest| largest.max(sent)).saturating_add(COPY)
}

/// What a topic takes; unknown to those who may not ask, or do not want to.
pub(crate) async fn taken(topology: &Topology, topic: &str) -> Option<usize> {
    let settings = &topology.clients.settings.options;
    if settings.declare == Declare::Off {
        return None;
    }
    let time = GLANCE.min(settings.publish_timeout / 3);
    let options = AdminOptions::new().request_timeout(Some(time));
    let asked = [&ResourceSpecifier::Topic(topic)];
    let admin = topology.admin("declare").ok()?;
    let answered = admin.describe_configs(asked, &options).await;
    let answered = answered.inspect_err(|error| topology.give_up(&admin, error));
    let config = answered.ok()?.pop()?.ok()?;
    config.get(LARGEST)?.value.as_deref()?.parse().ok()
}
