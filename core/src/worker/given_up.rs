use std::time::Duration;

use tokio::time::Instant;

use crate::{Delivery, Reason, Subscription};

/// How many messages a loop names within a period. A poisoned release may give up thousands in a
/// second, and the same line a thousand times hides the other ones.
const NAMED: u32 = 20;
const PERIOD: Duration = Duration::from_secs(30);

/// Says at WARN what a loop gives up: one line for each message, and where they flood one line for
/// those that it does not name.
#[derive(Default)]
pub(super) struct GivenUp {
    period_ends: Option<Instant>,
    named: u32,
    unnamed: u64,
}

impl GivenUp {
    pub(super) fn say(&mut self, subscription: &Subscription, delivery: &Delivery, why: &Reason) {
        let now = Instant::now();
        if self.period_ends.is_none_or(|end| end <= now) {
            self.count(subscription);
            (self.period_ends, self.named) = (Some(now + PERIOD), 0);
        }
        if self.named == NAMED {
            self.unnamed += 1;
            return;
        }
        self.named += 1;
        let envelope = delivery.envelope();
        tracing::warn!(
            id = envelope.id,
            r#type = &*envelope.r#type,
            subscription = %subscription.stored_name(),
            attempt = delivery.attempt(),
            reason = why.code(),
            error = why.error(),
            "a message is given up"
        );
    }

    /// When those are to be counted that were not named.
    pub(super) fn next_count(&self) -> Option<Instant> {
        self.period_ends.filter(|_| self.unnamed > 0)
    }

    /// Says how many were not named.
    pub(super) fn count(&mut self, subscription: &Subscription) {
        let unnamed = std::mem::take(&mut self.unnamed);
        if unnamed > 0 {
            tracing::warn!(
                count = unnamed,
                subscription = %subscription.stored_name(),
                "more messages were given up; the dead letters name them"
            );
        }
    }
}
