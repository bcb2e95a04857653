use std::time::Duration;

use crate::{Delivery, Outcome, Subscription};

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

/// Releases a suspect for a second, where it came beside others: what waits at the broker is not
/// counted with the one that ends the process.
pub fn put_off(suspect: Delivery) {
    // If that fails, it comes back as what is dropped does.
    drop(suspect.settle(Outcome::Release { after: Duration::from_secs(1) }));
}
