use anybroker_core::adapter::prefixed;
use anybroker_core::{Destination, Result, Subscription};

/// The names of a group's topics, and its own.
#[derive(Debug)]
pub(crate) struct Names {
    /// The consumer group.
    pub(crate) group: String,
    pub(crate) topic: String,
    /// What is to be handled later, or once more, by this group alone.
    pub(crate) retry: String,
    pub(crate) dead_letters: String,
}

impl Names {
    pub(crate) fn new(subscription: &Subscription, prefix: Option<&str>) -> Result<Self> {
        subscription.validate()?;
        let destination = subscription.destination();
        let stored = prefixed(prefix, ".", destination, &subscription.stored_name())?;
        Ok(Self {
            topic: prefixed(prefix, ".", destination, destination.name())?,
            retry: format!("{stored}--retry"),
            dead_letters: format!("{stored}--dlq"),
            group: stored,
        })
    }
}

/// The topic of a destination.
pub(crate) fn topic(destination: &Destination, prefix: Option<&str>) -> Result<String> {
    destination.validate()?;
    prefixed(prefix, ".", destination, destination.name())
}
