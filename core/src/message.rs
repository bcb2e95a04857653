use std::fmt;
use std::sync::Arc;

use crate::{Destination, Envelope, Subscription};

/// What a handler gets: the envelope, its attempt, and where it came from.
///
/// Cheap to clone. It carries no settlement: a handler answers an [`Outcome`](crate::Outcome).
#[derive(Clone)]
pub struct Message {
    envelope: Arc<Envelope>,
    subscription: Arc<Subscription>,
    attempt: u32,
}

impl Message {
    /// Makes a message; the worker does, and tests of handlers.
    pub fn new(envelope: Arc<Envelope>, subscription: Arc<Subscription>, attempt: u32) -> Self {
        Self { envelope, subscription, attempt }
    }

    /// What was published.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// The queue or topic it came from.
    pub fn destination(&self) -> &Destination {
        self.subscription.destination()
    }

    /// The group it was delivered to.
    pub fn group(&self) -> &str {
        self.subscription.group_name()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.envelope.id)
            .field("type", &self.envelope.r#type)
            .field("attempt", &self.attempt)
            .field("destination", &self.destination().name())
            .field("group", &self.group())
            .finish_non_exhaustive()
    }
}
