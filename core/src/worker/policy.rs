//! What becomes of a message whose handler says nothing about it, and of one that no handler sees.

use std::time::Duration;

use super::settling::Kind;
use crate::envelope::new_id;
use crate::middleware::dead_letter::judge;
use crate::middleware::retry::say_retry;
use crate::{Backoff, BoxError, Envelope, Expired, Jitter, Outcome, Reason};

/// Attempts of a message whose errors no retry layer has judged.
const DEFAULT_ATTEMPTS: u32 = 5;

/// Turns an error that came out of all layers into an outcome: what is permanent or exhausted is
/// given up, an overload gives the message back, the rest gets the default retry.
///
/// `limit` is the subscription's: what fails on its last delivery keeps its error.
pub(super) fn outcome_of(
    error: BoxError,
    attempt: u32,
    limit: Option<u32>,
    envelope: &Envelope,
) -> Outcome {
    let last = limit.map_or(DEFAULT_ATTEMPTS, |limit| DEFAULT_ATTEMPTS.min(limit));
    match judge(error) {
        Ok(outcome) => outcome,
        Err(error) if attempt >= last => {
            Outcome::DeadLetter { reason: Reason::from_error(Reason::EXHAUSTED, &*error) }
        }
        Err(error) => {
            let after = default_retry().delay(attempt, &envelope.id);
            say_retry(Some(envelope), attempt, after, &*error);
            Outcome::Retry { after }
        }
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

/// What becomes of a message that came back so often in a row that it may be what ends the
/// processes that handle it.
pub(super) fn too_many_deliveries(deliveries: u32) -> Outcome {
    let text = format!(
        "came back {deliveries} times in a row, the limit of the subscription, without an outcome \
         that finished it or stored it anew: it may end the process that handles it"
    );
    Outcome::dead_letter(Reason::MAX_DELIVERIES, text)
}

/// What becomes of a message whose handler asks for one more retry than the limit has room for.
pub(super) fn last_retry(attempt: u32) -> Outcome {
    let text = format!(
        "the handler asked for a retry, but attempt {attempt} was the last that the limit of the \
         subscription allows"
    );
    Outcome::dead_letter(Reason::MAX_DELIVERIES, text)
}

/// What becomes of a message whose time lies so far ahead that it is taken for a mistake.
pub(super) fn too_far_ahead(ahead: Duration, limit: Duration) -> Outcome {
    let days = |time: Duration| time.as_secs_f64() / 86_400.0;
    let text = format!(
        "no handler may see it for {:.1} days, and the subscription waits for {:.1} at most: its \
         publisher's clock or delay is wrong, or max_delay is to be raised",
        days(ahead),
        days(limit)
    );
    Outcome::dead_letter(Reason::TOO_FAR_AHEAD, text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_on_the_last_delivery_of_a_limit_is_kept() {
        for (attempt, limit) in [(5, Some(20)), (5, None), (3, Some(3)), (1, Some(1))] {
            let Outcome::DeadLetter { reason } =
                outcome_of("no answer".into(), attempt, limit, &Envelope::new("t", "{}"))
            else {
                panic!("attempt {attempt} of {limit:?} was the last")
            };
            assert_eq!((reason.code(), reason.error()), (Reason::EXHAUSTED, "no answer"));
        }
        for (attempt, limit) in [(4, Some(20)), (4, None), (2, Some(3))] {
            let outcome = outcome_of("no answer".into(), attempt, limit, &Envelope::new("t", "{}"));
            assert!(matches!(outcome, Outcome::Retry { .. }), "attempt {attempt} of {limit:?}");
        }
    }
}
