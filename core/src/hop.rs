use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::envelope::new_id;
use crate::{Delivery, Reason, Subscription, now};

/// What travels beside an envelope from one stored copy to the next: the envelope itself stays as
/// it was published, whatever happens to it.
///
/// A message that was only published has the default hop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hop {
    /// Identifies this stored copy; a new one for each retry, dead-lettering and redrive.
    pub id: Option<String>,
    /// Attempts that earlier copies used up.
    pub attempts: u32,
    /// No handler sees the copy earlier.
    pub not_before: Option<SystemTime>,
    /// When it failed first.
    pub first_failure: Option<SystemTime>,
    /// Why it was given up, in a dead-letter queue.
    pub failure: Option<Box<Failure>>,
}

/// Why a group gave a message up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Failure {
    /// Short code (`exhausted`, `permanent`, `expired`, …).
    pub reason: Cow<'static, str>,
    /// The error and its causes, cut to 4 KiB.
    pub error: String,
    /// Name of the queue or topic it was published to.
    pub origin: String,
    /// The group that gave it up.
    pub group: String,
    /// When it was given up.
    pub at: SystemTime,
}

impl Failure {
    /// Makes a failure; adapters read it back from a stored copy with this.
    pub fn new(
        reason: impl Into<Cow<'static, str>>,
        error: String,
        origin: String,
        group: String,
        at: SystemTime,
    ) -> Self {
        Self { reason: reason.into(), error, origin, group, at }
    }
}

impl Hop {
    /// The hop of a message published to be handled no earlier than `delay` from now.
    pub fn delayed(delay: Duration) -> Self {
        Self { not_before: Some(now() + delay), ..Self::default() }
    }

    /// The hop of the copy that is stored for `Retry { after }`: this attempt counts.
    pub fn retry(delivery: &Delivery, after: Duration) -> Self {
        let now = now();
        Self {
            id: Some(new_id()),
            attempts: delivery.attempt(),
            not_before: (!after.is_zero()).then(|| now + after),
            first_failure: delivery.hop().first_failure.or(Some(now)),
            failure: None,
        }
    }

    /// The hop of the copy that is stored for `Release { after }`: this attempt does not count.
    pub fn release(delivery: &Delivery, after: Duration) -> Self {
        Self {
            id: Some(new_id()),
            attempts: delivery.attempt() - 1,
            not_before: (!after.is_zero()).then(|| now() + after),
            first_failure: delivery.hop().first_failure,
            failure: None,
        }
    }

    /// The hop of the copy in the group's dead-letter queue.
    pub fn dead_letter(delivery: &Delivery, reason: &Reason, subscription: &Subscription) -> Self {
        let now = now();
        Self {
            id: Some(new_id()),
            attempts: delivery.attempt(),
            not_before: None,
            first_failure: delivery.hop().first_failure.or(Some(now)),
            failure: Some(Box::new(Failure {
                reason: reason.code().to_owned().into(),
                error: reason.error().to_owned(),
                origin: subscription.destination().name().to_owned(),
                group: subscription.group_name().to_owned(),
                at: now,
            })),
        }
    }

    /// The hop of a copy sent back from the dead-letter queue: attempts start anew.
    pub fn redrive() -> Self {
        Self { id: Some(new_id()), ..Self::default() }
    }
}
