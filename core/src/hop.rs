use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::envelope::new_id;
use crate::{Delivery, Outcome, Reason, Subscription, now};

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
    /// How often in a row it came back without a settlement until this copy was stored; see
    /// [`Delivery::unsettled`].
    pub unsettled: u32,
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
        Self { not_before: Some(later(now(), delay)), ..Self::default() }
    }

    /// The hop of the copy that is stored for an outcome; none for `Ack`, which needs no copy.
    pub fn after(
        delivery: &Delivery,
        outcome: &Outcome,
        subscription: &Subscription,
    ) -> Option<Self> {
        match outcome {
            Outcome::Ack => None,
            Outcome::Retry { after } => Some(Self::retry(delivery, *after)),
            Outcome::Release { after } => Some(Self::release(delivery, *after)),
            Outcome::DeadLetter { reason } => {
                Some(Self::dead_letter(delivery, reason, subscription))
            }
        }
    }

    /// The hop of the copy that is stored for `Retry { after }`: this attempt counts.
    pub fn retry(delivery: &Delivery, after: Duration) -> Self {
        let now = now();
        Self {
            id: Some(new_id()),
            attempts: delivery.attempt(),
            unsettled: 0,
            not_before: (!after.is_zero()).then(|| later(now, after)),
            first_failure: delivery.hop().first_failure.or(Some(now)),
            failure: None,
        }
    }

    /// The hop of the copy that is stored for `Release { after }`: this attempt does not count. What
    /// is given back before its time is not due earlier for that.
    pub fn release(delivery: &Delivery, after: Duration) -> Self {
        let now = now();
        let due = (!after.is_zero()).then(|| later(now, after));
        let not_before = delivery.hop().not_before.filter(|due| *due > now);
        Self {
            id: Some(new_id()),
            attempts: delivery.attempt() - 1,
            unsettled: delivery.unsettled(),
            not_before: due.max(not_before),
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
            unsettled: 0,
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

/// `after` from `now`, or in the far future where the clock cannot say when that is.
fn later(now: SystemTime, after: Duration) -> SystemTime {
    const CENTURY: Duration = Duration::from_hours(24 * 36_525);
    now.checked_add(after).unwrap_or(now + CENTURY)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Confirmation, Envelope, Settler};

    #[derive(Debug)]
    struct Ignored;

    impl Settler for Ignored {
        fn settle(&self, _: Delivery, _: Outcome) -> Confirmation {
            Confirmation::ready(Ok(()))
        }

        fn abandon(&self, _: u64) {}
    }

    fn delivery(hop: Hop, returned: u32) -> Delivery {
        let envelope = Arc::new(Envelope::new("order.created", ""));
        Delivery::new(envelope, Some(Box::new(hop)), returned, 1, Arc::new(Ignored))
    }

    fn failed_before() -> Hop {
        Hop {
            id: Some("earlier".to_owned()),
            attempts: 3,
            unsettled: 1,
            not_before: Some(SystemTime::UNIX_EPOCH),
            first_failure: Some(SystemTime::UNIX_EPOCH),
            failure: None,
        }
    }

    #[test]
    fn attempts_are_those_of_earlier_copies_and_of_this_one() {
        assert_eq!(delivery(Hop::default(), 0).attempt(), 1);
        assert_eq!(delivery(failed_before(), 2).attempt(), 6);
        assert_eq!(delivery(Hop { attempts: u32::MAX, ..Hop::default() }, 1).attempt(), u32::MAX);
    }

    #[test]
    fn a_retry_counts_this_attempt_and_a_release_does_not() {
        let delivery = delivery(failed_before(), 2);
        let (retry, release) = (
            Hop::retry(&delivery, Duration::from_mins(1)),
            Hop::release(&delivery, Duration::from_mins(1)),
        );
        assert_eq!((retry.attempts, release.attempts), (6, 5));
        for hop in [retry, release] {
            let wait = hop.not_before.expect("it waits").duration_since(now()).expect("later");
            assert!(wait <= Duration::from_mins(1) && wait > Duration::from_secs(50), "{wait:?}");
            assert_eq!(hop.first_failure, Some(SystemTime::UNIX_EPOCH));
            assert!(hop.id.is_some_and(|id| id != "earlier"));
        }
    }

    #[test]
    fn only_a_failure_sets_when_it_failed_first() {
        let delivery = delivery(Hop::default(), 0);
        assert!(Hop::retry(&delivery, Duration::ZERO).first_failure.is_some());
        assert_eq!(Hop::release(&delivery, Duration::ZERO).first_failure, None);
        assert_eq!(Hop::retry(&delivery, Duration::ZERO).not_before, None);
        assert_eq!(Hop::release(&delivery, Duration::ZERO).not_before, None);
    }

    #[test]
    fn what_comes_back_unsettled_counts_until_a_handler_fails() {
        let mut delivery = delivery(failed_before(), 2);
        assert_eq!(delivery.unsettled(), 3);
        assert_eq!(Hop::release(&delivery, Duration::ZERO).unsettled, 3);
        assert_eq!(Hop::retry(&delivery, Duration::ZERO).unsettled, 0);
        delivery.count_attempt();
        assert_eq!((delivery.attempt(), delivery.unsettled()), (7, 0));
    }

    #[test]
    fn a_wait_beyond_the_clock_is_a_long_one() {
        let delivery = delivery(Hop::default(), 0);
        for hop in [
            Hop::delayed(Duration::MAX),
            Hop::retry(&delivery, Duration::MAX),
            Hop::release(&delivery, Duration::MAX),
        ] {
            let wait = hop.not_before.expect("it waits").duration_since(now()).expect("later");
            assert!(wait > Duration::from_hours(24 * 36_500));
        }
    }

    #[test]
    fn a_dead_letter_says_why_and_where() {
        let subscription = Subscription::topic("order.created").group("email");
        let reason = Reason::new(Reason::EXHAUSTED, "no answer");
        let hop = Hop::dead_letter(&delivery(failed_before(), 0), &reason, &subscription);
        assert_eq!((hop.attempts, hop.not_before), (4, None));
        assert_eq!(hop.first_failure, Some(SystemTime::UNIX_EPOCH));
        let failure = hop.failure.expect("it failed");
        assert_eq!((&*failure.reason, &*failure.error), ("exhausted", "no answer"));
        assert_eq!((&*failure.origin, &*failure.group), ("order.created", "email"));
        assert!(now().duration_since(failure.at).expect("not later") < Duration::from_mins(1));
    }

    #[test]
    fn a_release_before_its_time_does_not_come_earlier() {
        let (hour, minute) = (Duration::from_hours(1), Duration::from_mins(1));
        let due = now() + hour;
        let early = || delivery(Hop { not_before: Some(due), ..Hop::default() }, 0);
        for after in [Duration::ZERO, minute] {
            assert_eq!(Hop::release(&early(), after).not_before, Some(due), "after {after:?}");
        }
        assert!(Hop::release(&early(), hour * 2).not_before > Some(due));
        let over = delivery(failed_before(), 0);
        assert_eq!(Hop::release(&over, Duration::ZERO).not_before, None);
    }

    #[test]
    fn an_outcome_says_which_copy_is_stored() {
        let subscription = Subscription::queue("q");
        let after = Duration::from_mins(1);
        let hop = |outcome| Hop::after(&delivery(failed_before(), 0), &outcome, &subscription);
        assert_eq!(hop(Outcome::Ack), None);
        let attempts = |outcome| hop(outcome).map(|hop| (hop.attempts, hop.failure.is_some()));
        assert_eq!(attempts(Outcome::Retry { after }), Some((4, false)));
        assert_eq!(attempts(Outcome::Release { after }), Some((3, false)));
        let reason = Reason::new(Reason::EXHAUSTED, "no answer");
        assert_eq!(attempts(Outcome::DeadLetter { reason }), Some((4, true)));
    }

    #[test]
    fn a_redrive_starts_anew() {
        let hop = Hop::redrive();
        assert_eq!(hop, Hop { id: hop.id.clone(), ..Hop::default() });
        assert_ne!(hop.id, Hop::redrive().id);
    }
}
