//! What becomes of a message whose handler says nothing about it, and of one that no handler sees.

use std::any::Any;
use std::time::Duration;

use super::settling::Kind;
use crate::mark::{self, Mark};
use crate::{Backoff, BoxError, Error, ErrorKind, Expired, Jitter, Outcome, Reason, RetryClass};

/// Attempts of a message whose errors no retry layer has judged.
const DEFAULT_ATTEMPTS: u32 = 5;

/// Turns an error that came out of all layers into an outcome: what is permanent or exhausted is
/// given up, the rest gets the default retry.
pub(super) fn outcome_of(error: &BoxError, attempt: u32) -> Outcome {
    let reason = match mark::find(error) {
        Some(Mark::Exhausted) => Reason::EXHAUSTED,
        Some(Mark::Permanent | Mark::Class(RetryClass::Permanent)) => Reason::PERMANENT,
        _ if attempt >= DEFAULT_ATTEMPTS => Reason::EXHAUSTED,
        _ => return Outcome::Retry { after: default_retry().delay(attempt) },
    };
    Outcome::DeadLetter { reason: Reason::from_error(reason, &**error) }
}

fn default_retry() -> Backoff {
    Backoff::exponential(Duration::from_secs(1)).cap(Duration::from_mins(1)).jitter(Jitter::Equal)
}

/// How long to wait after that many failures of the broker in a row.
pub(super) fn reconnect_delay(failures: u32) -> Duration {
    Backoff::exponential(Duration::from_millis(200))
        .cap(Duration::from_secs(30))
        .jitter(Jitter::Equal)
        .delay(failures)
}

pub(super) fn too_many_deliveries(deliveries: u32) -> Outcome {
    let text =
        format!("delivered {deliveries} times, the limit of the subscription, without an outcome");
    Outcome::dead_letter(Reason::MAX_DELIVERIES, text)
}

pub(super) fn expired(policy: Expired) -> (Outcome, Kind) {
    match policy {
        Expired::DeadLetter => {
            let text = "the envelope's expiry time had passed before a handler saw it";
            (Outcome::dead_letter(Reason::EXPIRED, text), Kind::DeadLettered)
        }
        Expired::Discard => (Outcome::Ack, Kind::Discarded),
    }
}

/// A panic as the error of its message.
pub(super) fn panic_error(panic: &(dyn Any + Send)) -> BoxError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    Error::new(ErrorKind::Broker, format!("the handler panicked: {text}")).into()
}
