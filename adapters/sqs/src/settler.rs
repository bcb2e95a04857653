use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::adapter::Background;
use anybroker_core::{
    Confirmation, Confirmer, Delivery, Envelope, ErrorKind, Hop, Outcome, Settler, Subscription,
    now,
};
use tokio::runtime::Handle;

use crate::held::{Delete, GiveBack, Held, Stale, Then};
use crate::lane::Lane;
use crate::senders::{LONGEST_DELAY, Senders, Target};

/// Deletes and visibility changes at once.
const CALLS: usize = 8;

/// Hidden for this much less than is left, a message comes back in time to be stored once more for
/// the rest, with its attempts as they should be.
const REST: Duration = Duration::from_mins(1);

/// Settles the deliveries of one consumer.
pub(crate) struct SqsSettler {
    subscription: Subscription,
    held: Arc<Held>,
    senders: Arc<Senders>,
    /// In order several, with one call at a time; a message group has one.
    deletes: Vec<Lane<Delete>>,
    returns: Lane<GiveBack>,
    /// What outlives a call runs here, also when the caller has left the runtime.
    runtime: Handle,
}

impl SqsSettler {
    pub(crate) fn start(
        subscription: Subscription,
        held: Arc<Held>,
        senders: Arc<Senders>,
    ) -> Self {
        let deletes = {
            // In order a later one must not be deleted before the one that goes first.
            let (lanes, calls) = if subscription.is_ordered() { (CALLS, 1) } else { (1, CALLS) };
            let lane = || {
                let held = Arc::clone(&held);
                Lane::start(calls, usize::MAX, (), move |batch| Arc::clone(&held).delete(batch))
            };
            (0..lanes).map(|_| lane()).collect()
        };
        let returns = {
            let held = Arc::clone(&held);
            Lane::start(CALLS, usize::MAX, (), move |batch| Arc::clone(&held).give_back(batch))
        };
        Self { subscription, held, senders, deletes, returns, runtime: Handle::current() }
    }

    fn delete(&self, tag: u64, confirmer: Confirmer) {
        // A lane that has ended drops the confirmer, which then says so.
        let _ = self.deletes_of(tag).push(Delete(tag, confirmer));
    }

    fn deletes_of(&self, tag: u64) -> &Lane<Delete> {
        &self.deletes[self.held.lane(tag, self.deletes.len())]
    }

    fn give_back(&self, tag: u64, after: Duration, then: Then) {
        self.give_back_followers(tag);
        let after = after.min(self.held.longest(tag));
        if let Some(receipt) = self.held.give_up(tag) {
            let _ = self.returns.push(GiveBack { tag, receipt, after, then });
        }
    }

    /// In order nothing of a key may pass the one that goes back. While that is hidden SQS holds
    /// its group back, so that the others need not be hidden too.
    fn give_back_followers(&self, tag: u64) {
        for (tag, receipt) in self.held.lose_followers(tag) {
            let (after, then) = (Duration::ZERO, Then::Nothing);
            let _ = self.returns.push(GiveBack { tag, receipt, after, then });
        }
    }

    /// Stores a copy, and only then deletes the original. A crash between leaves both.
    fn store(
        &self,
        target: &Target,
        tag: u64,
        envelope: &Arc<Envelope>,
        hop: &Hop,
        after: Duration,
    ) -> Confirmation {
        let stored = self.senders.send(target, envelope, hop, after);
        let returns = matches!(target, Target::Queue(_));
        let (confirmer, confirmation) = Confirmation::channel();
        let (deletes, held, alive) =
            (self.deletes_of(tag).clone(), Arc::clone(&self.held), self.senders.alive());
        self.runtime.spawn(async move {
            match stored.await {
                Ok(()) => {
                    let (answered, answer) = Confirmation::channel();
                    let _ = deletes.push(Delete(tag, answered));
                    confirmer.confirm(answer.await);
                }
                // Somebody else's message that is too large as an event: it goes back as it is.
                Err(error) if error.kind() == ErrorKind::TooLarge && returns => {
                    let after = after.min(held.longest(tag));
                    if let Some(receipt) = held.give_up(tag) {
                        let then = Then::Confirm(confirmer);
                        held.give_back(vec![GiveBack { tag, receipt, after, then }]).await;
                    }
                }
                Err(error) => {
                    // It comes again: in order nothing may pass it.
                    drop(held.lose_followers(tag));
                    held.end(tag);
                    confirmer.confirm(Err(error));
                }
            }
            drop(alive);
        });
        confirmation
    }
}

impl Settler for SqsSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let tag = delivery.tag();
        match self.held.begin(tag) {
            Ok(()) => {}
            // It did already what was asked for.
            Err(Stale::GivenBack) if matches!(outcome, Outcome::Release { .. }) => {
                return Confirmation::ready(Ok(()));
            }
            Err(stale) => {
                self.give_back_followers(tag);
                self.held.end(tag);
                return Confirmation::ready(Err(stale.into()));
            }
        }
        let envelope = delivery.envelope();
        let ordered = self.subscription.is_ordered();
        let queue = Target::Queue(self.subscription.clone());
        let outcome = match outcome {
            // What goes back before its time keeps that.
            Outcome::Release { after } => {
                let due = delivery.hop().not_before.unwrap_or(UNIX_EPOCH);
                Outcome::Release { after: after.max(due.duration_since(now()).unwrap_or_default()) }
            }
            outcome => outcome,
        };
        match outcome {
            Outcome::Ack => {
                let (confirmer, confirmation) = Confirmation::channel();
                self.delete(tag, confirmer);
                confirmation
            }
            Outcome::DeadLetter { reason } => {
                let hop = Hop::dead_letter(&delivery, &reason, &self.subscription);
                let target = Target::DeadLetters(self.subscription.clone());
                self.store(&target, tag, envelope, &hop, Duration::ZERO)
            }
            // A copy would lose its place, and is stored only where SQS cannot hide for so long.
            Outcome::Retry { after } | Outcome::Release { after }
                if ordered && after <= self.held.longest(tag) =>
            {
                let (confirmer, confirmation) = Confirmation::channel();
                self.give_back(tag, after, Then::Confirm(confirmer));
                confirmation
            }
            Outcome::Retry { after } => {
                let hop = Hop::retry(&delivery, after);
                self.store(&queue, tag, envelope, &hop, after)
            }
            // Already stored with its time, which is far away.
            Outcome::Release { after }
                if after > LONGEST_DELAY
                    && delivery.hop().not_before.is_some_and(|due| due > now()) =>
            {
                let (confirmer, confirmation) = Confirmation::channel();
                self.give_back(tag, after.saturating_sub(REST), Then::Confirm(confirmer));
                confirmation
            }
            Outcome::Release { after } => {
                let hop = Hop::release(&delivery, after);
                self.store(&queue, tag, envelope, &hop, after)
            }
        }
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        let (held, tags) = (Arc::clone(&self.held), tags.to_vec());
        Background::spawn(async move { confirmer.confirm(held.renew(&tags).await) });
        confirmation
    }

    fn abandon(&self, tag: u64) {
        match self.held.begin(tag) {
            Ok(()) => self.give_back(tag, Duration::ZERO, Then::End),
            Err(_) => {
                self.give_back_followers(tag);
                self.held.end(tag);
            }
        }
    }

    fn is_lost(&self, tag: u64) -> bool {
        self.held.is_lost(tag)
    }
}

impl fmt::Debug for SqsSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsSettler").finish_non_exhaustive()
    }
}
