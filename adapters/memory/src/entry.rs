use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Envelope, Hop};
use tokio::time::Instant;

/// One group's copy of a message.
///
/// The envelope is shared by all groups, and by the message's later copies.
pub(crate) struct Entry {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) hop: Option<Box<Hop>>,
    /// When it was sent.
    pub(crate) since: Instant,
    /// Its place in the order of the group's messages; all its copies keep it.
    pub(crate) number: u64,
    /// How often this copy came back without a settlement.
    pub(crate) returned: u32,
}

impl Entry {
    pub(crate) fn new(envelope: Arc<Envelope>, since: Instant, number: u64) -> Self {
        Self { envelope, hop: None, since, number, returned: 0 }
    }

    /// The next copy of the message; the hop counts what came back before.
    pub(crate) fn with_hop(self, hop: Hop) -> Self {
        Self { hop: Some(Box::new(hop)), returned: 0, ..self }
    }
}

/// When a message may be handed out; `None` means at once.
pub(crate) fn due(now: Instant, delay: Duration) -> Option<Instant> {
    // A delay beyond the clock's range is as good as for ever.
    const FOR_EVER: Duration = Duration::from_hours(24 * 365 * 30);
    (!delay.is_zero()).then(|| now + delay.min(FOR_EVER))
}
