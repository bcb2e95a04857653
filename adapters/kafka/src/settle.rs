use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Confirmation, Delivery, Hop, Outcome, Settler, Subscription, now};

use crate::commands::{Commands, Settled, place};
use crate::error::stale;
use crate::names::Names;
use crate::publish::{Publisher, Record, Settlement, Waiting};

/// Settles the deliveries of one consumer.
pub(crate) struct GroupSettler {
    pub(crate) subscription: Subscription,
    pub(crate) names: Arc<Names>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) publisher: Arc<Publisher>,
}

impl GroupSettler {
    fn replace(&self, delivery: &Delivery, topic: &str, hop: Hop) -> Confirmation {
        let tag = delivery.tag();
        // Once gone it comes to another; a copy would only be one more.
        if !self.commands.is_assigned(tag) {
            return Confirmation::ready(Err(stale()));
        }
        let (confirmer, confirmation) = Confirmation::channel();
        let settlement = Settlement {
            tag,
            commands: Arc::clone(&self.commands),
            confirmer,
            returned: came_back(delivery),
        };
        let envelope = Arc::clone(delivery.envelope());
        let waiting = Waiting::Settlement(settlement);
        self.publisher.send(Record::new(topic.into(), envelope, hop, waiting));
        confirmation
    }

    fn give_back(&self, delivery: &Delivery, returned: u32, after: Duration) -> Confirmation {
        let given_back = Settled::GivenBack { returned, after };
        Confirmation::ready(self.commands.settle(delivery.tag(), given_back))
    }
}

/// How often the stored message came back, once this attempt has.
fn came_back(delivery: &Delivery) -> u32 {
    delivery.attempt().saturating_sub(delivery.hop().attempts)
}

/// Whether no handler may see it yet.
fn is_early(delivery: &Delivery) -> bool {
    delivery.hop().not_before.is_some_and(|due| due > now())
}

impl Settler for GroupSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let ordered = self.subscription.is_ordered();
        match outcome {
            Outcome::Ack => {
                Confirmation::ready(self.commands.settle(delivery.tag(), Settled::Finished))
            }
            Outcome::Retry { after } if ordered => {
                self.give_back(&delivery, came_back(&delivery), after)
            }
            // What came with a time that is far ahead waits where it keeps nothing back.
            Outcome::Release { after } if !after.is_zero() && is_early(&delivery) => {
                self.replace(&delivery, &self.names.retry, Hop::release(&delivery, after))
            }
            Outcome::Release { after } if ordered || after.is_zero() => {
                self.give_back(&delivery, came_back(&delivery).saturating_sub(1), after)
            }
            Outcome::Retry { after } => {
                self.replace(&delivery, &self.names.retry, Hop::retry(&delivery, after))
            }
            Outcome::Release { after } => {
                self.replace(&delivery, &self.names.retry, Hop::release(&delivery, after))
            }
            Outcome::DeadLetter { reason } => {
                let hop = Hop::dead_letter(&delivery, &reason, &self.subscription);
                self.replace(&delivery, &self.names.dead_letters, hop)
            }
        }
    }

    fn abandon(&self, tag: u64) {
        // If it is another's by now, it has come back already.
        let _ = self.commands.settle(tag, Settled::Dropped);
    }

    fn is_lost(&self, tag: u64) -> bool {
        !self.commands.is_kept(tag)
    }

    fn stream(&self, tag: u64) -> u64 {
        place(tag).0.into()
    }
}

impl fmt::Debug for GroupSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupSettler").field("group", &self.names.group).finish_non_exhaustive()
    }
}
