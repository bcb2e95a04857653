use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Confirmation, Delivery, Error, ErrorKind, Hop, Outcome, Settler, Subscription,
};
use tokio::time::Instant;

use crate::connection::error;
use crate::destination::StoredDestination;
use crate::entry::due;
use crate::in_flight::InFlight;

/// Settles what one consumer was handed.
pub(crate) struct MemorySettler {
    pub(crate) destination: Arc<StoredDestination>,
    pub(crate) group: usize,
    pub(crate) subscription: Subscription,
    pub(crate) in_flight: Arc<InFlight>,
}

impl Settler for MemorySettler {
    /// Whoever takes the delivery out of the table settles it: a lease that ran out, and nobody has
    /// noticed, harms nobody.
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let Some(entry) = self.in_flight.remove(delivery.tag()) else {
            return Confirmation::ready(Err(self.stale()));
        };
        // Delays are kept here, exactly; a hop that named the time too would make it a wall time.
        match outcome {
            Outcome::Ack if !self.subscription.is_ordered() => {}
            Outcome::Ack => {
                self.destination.with(self.group, |group, signals| group.finish(&entry, signals));
            }
            Outcome::Retry { after } => {
                let entry = entry.with_hop(Hop::retry(&delivery, Duration::ZERO));
                let due = due(Instant::now(), after);
                self.destination
                    .with(self.group, |group, signals| group.place(entry, due, signals));
            }
            Outcome::Release { after } => {
                let entry = entry.with_hop(Hop::release(&delivery, Duration::ZERO));
                let due = due(Instant::now(), after);
                self.destination.with(self.group, |group, signals| match due {
                    Some(_) => group.place(entry, due, signals),
                    None => group.give_back(entry, signals),
                });
            }
            Outcome::DeadLetter { reason } => {
                let hop = Hop::dead_letter(&delivery, &reason, &self.subscription);
                self.destination.with(self.group, |group, signals| {
                    group.finish(&entry, signals);
                    group.dead_letters.push(entry.with_hop(hop));
                });
            }
        }
        Confirmation::ready(Ok(()))
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        self.in_flight.renew(tags);
        Confirmation::ready(Ok(()))
    }

    fn runs_by_runtime_clock(&self) -> bool {
        true
    }

    fn abandon(&self, tag: u64) {
        if let Some(mut entry) = self.in_flight.remove(tag) {
            entry.returned += 1;
            self.destination.with(self.group, |group, signals| group.give_back(entry, signals));
        }
    }

    fn is_lost(&self, tag: u64) -> bool {
        !self.in_flight.holds(tag)
    }
}

impl MemorySettler {
    fn stale(&self) -> Error {
        let context = match self.in_flight.connection.check_open() {
            Err(_) => "the broker was closed, and the message given back",
            Ok(()) => "its lease ran out, and the message was given back: renew it in time",
        };
        error(ErrorKind::StaleDelivery, context).operation("settle")
    }
}

impl fmt::Debug for MemorySettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySettler")
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}
