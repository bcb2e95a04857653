use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::now;

/// How a broker's clock and this machine's differ, as far as the broker has told its time.
///
/// An adapter notes the broker's time whenever an answer holds it, and translates times that the
/// broker has written beside messages. An answer says only that the broker's clock showed this at
/// some moment between the question and the answer. So a difference that the way of both explains
/// is taken for none, and of answers that agree the quickest counts. Any other translated time may
/// be late by what the quickest answer took, and is not early.
///
/// ```
/// # use std::time::{Duration, SystemTime};
/// # use anybroker_core::adapter::ServerClock;
/// let clock = ServerClock::default();
/// let asked = SystemTime::now();
/// assert_eq!(clock.local(asked), None, "the server has told nothing yet");
///
/// let hour = Duration::from_hours(1);
/// clock.note(asked, asked - hour, Duration::from_millis(1));
/// let stored = clock.local(asked - hour).expect("it is known");
/// assert!(stored >= asked && stored.elapsed().unwrap_or_default() < Duration::from_secs(5));
/// ```
#[derive(Debug)]
pub struct ServerClock {
    /// By how many microseconds this machine's clock is ahead.
    ahead: AtomicI64,
    bounds: Mutex<Option<Bounds>>,
}

/// Between what the difference lies, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    least: i64,
    most: i64,
    since: Instant,
}

/// No clock is ahead by so many microseconds.
const UNKNOWN: i64 = i64::MIN;

/// Clocks drift, and are set: after a while, bounds are learned anew.
const VALID: Duration = Duration::from_mins(1);

impl Default for ServerClock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(UNKNOWN), bounds: Mutex::new(None) }
    }
}

impl ServerClock {
    /// Notes what the server's clock showed, cut to a `unit`, when its answer has come to a question
    /// that was asked at a time of this machine's clock.
    pub fn note(&self, asked: SystemTime, server: SystemTime, unit: Duration) {
        // Parts of a microsecond are cut off here.
        let most = ahead(now(), server).saturating_add(1);
        let least = ahead(asked, server + unit).saturating_sub(1).min(most);
        self.learn(Bounds { least, most, since: Instant::now() });
    }

    fn learn(&self, seen: Bounds) {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        let agreed = bounds.filter(|known| seen.since.duration_since(known.since) < VALID);
        let agreed = agreed.map(|known| Bounds {
            least: known.least.max(seen.least),
            most: known.most.min(seen.most),
            since: known.since,
        });
        // Where they contradict each other, a clock was set, or another server responds.
        let learned = agreed.filter(|both| both.least <= both.most).unwrap_or(seen);
        *bounds = Some(learned);
        let agree = learned.least <= 0 && learned.most >= 0;
        self.ahead.store(if agree { 0 } else { learned.most }, Ordering::Relaxed);
    }

    /// What this machine's clock showed at the server's `time`; none where the server has not told
    /// its time yet.
    pub fn local(&self, time: SystemTime) -> Option<SystemTime> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_micros(ahead.unsigned_abs());
        match ahead {
            UNKNOWN => None,
            0.. => time.checked_add(by),
            _ => time.checked_sub(by),
        }
    }
}

/// By how many microseconds a time of this machine's clock is ahead of one of the server's.
fn ahead(here: SystemTime, server: SystemTime) -> i64 {
    let micros = |by: Duration| i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    match here.duration_since(server) {
        Ok(ahead) => micros(ahead),
        Err(behind) => -micros(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    /// What the clock takes for the difference after answers with these bounds.
    fn learned(answers: &[(i64, i64)]) -> i64 {
        let clock = ServerClock::default();
        for (least, most) in answers {
            clock.learn(Bounds { least: *least, most: *most, since: Instant::now() });
        }
        clock.ahead.load(Ordering::Relaxed)
    }

    #[test]
    fn what_an_answer_takes_is_no_difference() {
        assert_eq!(learned(&[(-10, 3 * SECOND)]), 0);
        assert_eq!(learned(&[(-3 * SECOND, 10)]), 0);
        assert_eq!(learned(&[(-10, 40), (-10, 9 * SECOND), (-5 * SECOND, 2)]), 0);
    }

    #[test]
    fn of_answers_that_agree_the_quickest_counts_and_nothing_is_early() {
        let hour = 3600 * SECOND;
        assert_eq!(learned(&[(hour - 9 * SECOND, hour + 7)]), hour + 7);
        assert_eq!(learned(&[(hour - 3, hour + 9 * SECOND), (hour - 5, hour + 7)]), hour + 7);
        assert_eq!(learned(&[(-hour - 3, SECOND - hour), (-hour - 5, 7 - hour)]), 7 - hour);
    }

    #[test]
    fn a_clock_that_was_set_is_learned_anew() {
        assert_eq!(learned(&[(-10, 40), (40 * SECOND, 41 * SECOND)]), 41 * SECOND);
        let old = Instant::now().checked_sub(2 * VALID);
        let clock = ServerClock::default();
        let since = old.expect("the machine has run for longer");
        clock.learn(Bounds { least: 5 * SECOND, most: 6 * SECOND, since });
        clock.learn(Bounds { least: 0, most: 9 * SECOND, since: Instant::now() });
        assert_eq!(clock.ahead.load(Ordering::Relaxed), 0);
    }
}
