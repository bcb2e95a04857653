use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Confirmation, Delivery, Outcome, Settler, Subscription};

/// From which return without a settlement on a message is handed out alone, where a crash counts
/// for all that was handed out: it may be what ends its process, and would take the others along
/// into the dead letters.
///
/// After so many `returns`, or earlier where the subscription's limit is near. With a limit of one
/// delivery nothing can spare the others.
///
/// ```
/// # use anybroker_core::{Subscription, adapter::suspicious};
/// let orders = Subscription::queue("orders");
/// assert_eq!(suspicious(&orders, 2), 2);
/// assert_eq!(suspicious(&orders.max_deliveries(2), 2), 1);
/// ```
pub fn suspicious(subscription: &Subscription, returns: u32) -> u32 {
    let near = subscription.delivery_limit().map_or(u32::MAX, |limit| limit.saturating_sub(1));
    returns.min(near).max(1)
}

/// Lets one suspect at a time be handled, of all that a connection's consumers receive; see
/// [`suspicious`].
///
/// One that is handled for longer than [`LONGEST_ALONE`] does not hold up the others any further.
#[derive(Clone, Debug, Default)]
pub struct Suspects(Arc<Mutex<Place>>);

/// Whose it is, and since when.
#[derive(Debug, Default)]
struct Place {
    number: u64,
    since: Option<Instant>,
}

/// The place of the suspect that is handled, or of one that is about to be received. Dropped, it is
/// free.
#[derive(Debug)]
pub struct Alone {
    suspects: Suspects,
    number: u64,
}

/// For how long others wait for a suspect at most: its handler may take minutes.
pub const LONGEST_ALONE: Duration = Duration::from_secs(30);

/// When one that found the place taken comes again. At the broker no crash counts for it.
const AGAIN: Outcome = Outcome::Release { after: Duration::from_secs(1) };

impl Suspects {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place, if it is free: before a message is received, where that counts.
    pub fn enter(&self) -> Option<Alone> {
        let mut place = self.place();
        if place.since.is_some_and(|since| since.elapsed() <= LONGEST_ALONE) {
            return None;
        }
        place.number += 1;
        place.since = Some(Instant::now());
        Some(Alone { suspects: self.clone(), number: place.number })
    }

    /// Answers a suspect to be handed out: until it is settled or dropped it has the place, which it
    /// came with or which is free. Else it is released for a second.
    pub fn admit(&self, mut suspect: Delivery, place: Option<Alone>) -> Option<Delivery> {
        match place.or_else(|| self.enter()) {
            Some(alone) => {
                suspect.settle_by(|settler| Arc::new(Guarded { settler, _alone: alone }));
                Some(suspect)
            }
            None => {
                // If that fails, it comes back as what is dropped does.
                drop(suspect.settle(AGAIN));
                None
            }
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut place = self.suspects.place();
        // Another one may have taken it after 30 s.
        if place.number == self.number {
            place.since = None;
        }
    }
}

/// Settles a suspect, and then frees its place: a delivery lets go of its settler.
#[derive(Debug)]
struct Guarded {
    settler: Arc<dyn Settler>,
    _alone: Alone,
}

impl Settler for Guarded {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        self.settler.settle(delivery, outcome)
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        self.settler.renew(tags)
    }

    fn runs_by_runtime_clock(&self) -> bool {
        self.settler.runs_by_runtime_clock()
    }

    fn abandon(&self, tag: u64) {
        self.settler.abandon(tag);
    }

    fn is_lost(&self, tag: u64) -> bool {
        self.settler.is_lost(tag)
    }

    fn stream(&self, tag: u64) -> u64 {
        self.settler.stream(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Envelope;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Option<Outcome>)>>);

    impl Settler for Recorder {
        fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
            self.0.lock().expect("no panic").push((delivery.tag(), Some(outcome)));
            Confirmation::ready(Ok(()))
        }

        fn abandon(&self, tag: u64) {
            self.0.lock().expect("no panic").push((tag, None));
        }
    }

    #[test]
    fn one_has_the_place_until_it_is_settled_or_dropped() {
        let recorder = Arc::new(Recorder::default());
        let delivery = |tag| {
            let envelope = Arc::new(Envelope::new("order.created", ""));
            Delivery::new(envelope, None, 2, tag, Arc::clone(&recorder) as _)
        };
        let suspects = Suspects::default();
        let admit = |tag| suspects.clone().admit(delivery(tag), None);

        let first = admit(1).expect("there is none");
        assert!(admit(2).is_none());
        drop(first.settle(Outcome::Ack));
        let third = admit(3).expect("the first is settled");
        assert!(admit(4).is_none());
        drop(third);
        let place = suspects.enter().expect("the third is dropped");
        assert!(admit(5).is_none());
        let sixth = suspects.admit(delivery(6), Some(place)).expect("it came with its place");
        assert!(suspects.enter().is_none());
        drop(sixth.settle(Outcome::Ack));
        drop(suspects.enter().expect("the sixth is settled"));
        assert!(suspects.enter().is_some());

        let settled = recorder.0.lock().expect("no panic").clone();
        let (again, ack) = (Some(AGAIN), Some(Outcome::Ack));
        let expected = [
            (2, again.clone()),
            (1, ack.clone()),
            (4, again.clone()),
            (3, None),
            (5, again),
            (6, ack),
        ];
        assert_eq!(settled, expected);
    }

    #[test]
    fn one_that_lasts_does_not_hold_up_the_others_for_ever() {
        let suspects = Suspects::default();
        let slow = suspects.enter().expect("there is none");
        let long_ago = Instant::now().checked_sub(LONGEST_ALONE + Duration::from_secs(1));
        suspects.place().since = Some(long_ago.expect("the machine has run for a while"));
        let next = suspects.enter().expect("it has lasted");
        drop(slow);
        assert!(suspects.enter().is_none(), "the next one is there still");
        drop(next);
        assert!(suspects.enter().is_some());
    }
}
