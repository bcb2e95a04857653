use std::fmt;
use std::sync::Arc;

use crate::{Confirmation, Envelope, Hop, Outcome};

/// One envelope handed to one consumer, with its attempt number and its settlement.
///
/// Settlement is by value and happens once. A delivery that is dropped unsettled comes back.
pub struct Delivery {
    envelope: Arc<Envelope>,
    hop: Option<Box<Hop>>,
    attempt: u32,
    unsettled: u32,
    tag: u64,
    settler: Option<Arc<dyn Settler>>,
}

/// Settles the deliveries of one consumer; adapters implement it.
///
/// The worker waits for an answer for a minute or two. Then it counts the settlement as failed and
/// stops renewing the lease; the settlement itself may still take effect.
///
/// Calls take effect in their order, and at once: they run whether or not the confirmation is
/// polled. What `Ok` means is a capability ([`SettlementProof`](crate::SettlementProof)).
///
/// # Errors
/// [`StaleDelivery`](crate::ErrorKind::StaleDelivery) wherever the broker can tell that the
/// delivery is no longer this consumer's. When the copy for a retry or a dead-letter queue cannot
/// be stored, the delivery is not acknowledged, and comes back.
///
/// # Ordering
/// In an ordered subscription a released delivery goes back to its place, before the later ones of
/// its key; a copy stored anew would be overtaken. A retried one does too, unless the broker has no
/// [`ordered_delays`](crate::Capabilities::ordered_delays): there the worker retries only what has
/// longer to wait than a delivery can be held. What the worker releases for a time because its own
/// time ([`Hop::not_before`]) is far ahead may be stored anew: in its place it would keep back what
/// follows it.
pub trait Settler: Send + Sync + fmt::Debug {
    /// Settles a delivery. Whatever new copy the outcome needs is stored, with the broker's
    /// confirmation, before the delivery is acknowledged.
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation;

    /// Extends the leases of the deliveries with these tags. Tags that are settled, abandoned or
    /// lost already are skipped. Does nothing where deliveries are not leased.
    fn renew(&self, tags: &[u64]) -> Confirmation {
        let _ = tags;
        Confirmation::ready(Ok(()))
    }

    /// Whether leases run by the clock of the worker's runtime, which a test may pause and move.
    ///
    /// Leases are renewed in the [background](crate::adapter::Background), where a handler that
    /// blocks its thread cannot hold the renewals up; what [`renew`](Self::renew) waits for must not
    /// wait for that thread either. The clock of the background cannot be moved, so that those which
    /// run by another one are renewed on the worker's runtime too.
    fn runs_by_runtime_clock(&self) -> bool {
        false
    }

    /// Gives back a delivery that was dropped unsettled, as soon as the broker can.
    fn abandon(&self, tag: u64);

    /// Whether the delivery is known to be no longer this consumer's, so that to handle it would
    /// only be to handle it twice: the connection it came by is gone, or its partition was
    /// revoked. The worker asks before it starts a handler, and releases what is lost. That a
    /// consumer has ended does not say so: what it handed out is handled as long as this is false.
    fn is_lost(&self, tag: u64) -> bool {
        let _ = tag;
        false
    }

    /// By which of its consumer's streams the delivery came, where one takes the place of another
    /// and the worker is not told: with a new channel after a reconnect, or when a partition comes
    /// back. In order, what came by the former is lost as a whole and comes again by the new one,
    /// which must not be given back with it.
    fn stream(&self, tag: u64) -> u64 {
        let _ = tag;
        0
    }
}

impl Delivery {
    /// Makes a delivery; adapters call it.
    ///
    /// `returned` is how often the broker saw this stored copy come back; `tag` means something to
    /// the settler alone, and is any number but `u64::MAX`.
    pub fn new(
        envelope: Arc<Envelope>,
        hop: Option<Box<Hop>>,
        returned: u32,
        tag: u64,
        settler: Arc<dyn Settler>,
    ) -> Self {
        let (earlier, unsettled) = hop.as_ref().map_or((0, 0), |hop| (hop.attempts, hop.unsettled));
        let attempt = earlier.saturating_add(returned).saturating_add(1);
        let unsettled = unsettled.saturating_add(returned);
        Self { envelope, hop, attempt, unsettled, tag, settler: Some(settler) }
    }

    /// What was published.
    pub fn envelope(&self) -> &Arc<Envelope> {
        &self.envelope
    }

    /// What travels beside the envelope.
    pub fn hop(&self) -> &Hop {
        static PUBLISHED: Hop = Hop {
            id: None,
            attempts: 0,
            unsettled: 0,
            not_before: None,
            first_failure: None,
            failure: None,
        };
        self.hop.as_deref().unwrap_or(&PUBLISHED)
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How often in a row it came back without a settlement, over all its copies: since it was
    /// published, or a handler last failed with it. A release keeps the count. What came back often
    /// enough may have ended its process, and adapters hand it out alone; where a retry goes back to
    /// its place, they cannot tell it from a crash.
    pub fn unsettled(&self) -> u32 {
        self.unsettled
    }

    /// What the settler knows the delivery by.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Settles it. See [`Settler`] for errors.
    pub fn settle(mut self, outcome: Outcome) -> Confirmation {
        match self.settler.take() {
            Some(settler) => settler.settle(self, outcome),
            // Only a settler sees a delivery without one, and it has settled it.
            None => Confirmation::ready(Ok(())),
        }
    }

    /// Whether it is known to have come to somebody else, or to come again; see
    /// [`Settler::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.settler.as_ref().is_some_and(|settler| settler.is_lost(self.tag))
    }

    /// By which stream it came; see [`Settler::stream`].
    pub(crate) fn stream(&self) -> u64 {
        self.settler.as_ref().map_or(0, |settler| settler.stream(self.tag))
    }

    /// Lets another one settle it, made of the one that would have.
    pub(crate) fn settle_by(&mut self, by: impl FnOnce(Arc<dyn Settler>) -> Arc<dyn Settler>) {
        self.settler = self.settler.take().map(by);
    }

    /// Notes when a handler failed with it, before it waits for its next attempt.
    pub(crate) fn note_failure(&mut self) {
        self.hop.get_or_insert_default().first_failure.get_or_insert_with(crate::now);
    }

    /// Counts a failed attempt that will be repeated in this process.
    pub(crate) fn count_attempt(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
        self.unsettled = 0;
    }

    /// Takes this attempt back: it ends in the dead-letter queue before a handler has seen it.
    pub(crate) fn uncount_attempt(&mut self) {
        self.attempt = self.attempt.saturating_sub(1);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            settler.abandon(self.tag);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.envelope.id)
            .field("type", &self.envelope.r#type)
            .field("attempt", &self.attempt)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}
