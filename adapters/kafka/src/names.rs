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
        let own = |name: &str| prefixed(name, destination.is_native(), prefix);
        Ok(Self {
            group: own(&subscription.stored_name()),
            topic: own(destination.name()),
            retry: own(&subscription.derived_name("retry")),
            dead_letters: own(&subscription.derived_name("dlq")),
        })
    }
}

/// The topic of a destination.
pub(crate) fn topic(destination: &Destination, prefix: Option<&str>) -> Result<String> {
    destination.validate()?;
    Ok(prefixed(destination.name(), destination.is_native(), prefix))
}

fn prefixed(name: &str, native: bool, prefix: Option<&str>) -> String {
    match prefix {
        Some(prefix) if !native => [prefix, ".", name].concat(),
        _ => name.to_owned(),
    }
}
