//! What becomes of a message whose handler says nothing about it, and of one that no handler sees.

use std::time::Duration;

use super::settling::Kind;
use crate::envelope::new_id;
use crate::middleware::dead_letter::judge;
use crate::{Backoff, BoxError, Expired, Jitter, Outcome, Reason};

/// Attempts of a message whose errors no retry layer has judged.
const DEFAULT_ATTEMPTS: u32 = 5;

/// Turns an error that came out of all layers into an outcome: what is permanent or exhausted is
/// given up, an overload gives the message back, the rest gets the default retry.
pub(super) fn outcome_of(error: BoxError, attempt: u32, id: &str) -> Outcome {
    match judge(error) {
        Ok(outcome) => outcome,
        Err(error) if attempt >= DEFAULT_ATTEMPTS => {
            Outcome::DeadLetter { reason: Reason::from_error(Reason::EXHAUSTED, &*error) }
        }
        Err(_) => Outcome::Retry { after: default_retry().delay(attempt, id) },
    }
}

fn default_retry() -> Backoff {
    Backoff::exponential(Duration::from_secs(1)).cap(Duration::from_mins(1)).jitter(Jitter::Equal)
}

/// How long to wait after that many failures of the broker in a row.
pub(super) fn reconnect_delay(failures: u32) -> Duration {
    Backoff::exponential(Duration::from_millis(200))
        .cap(Duration::from_secs(30))
        .jitter(Jitter::Equal)
        // Chance must differ between processes, or all come back at once.
        .delay(failures, &new_id())
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
