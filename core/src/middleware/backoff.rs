use std::time::Duration;

use fastrand::Rng;
use xxhash_rust::xxh3::xxh3_64;

/// How long a failed message waits before its next attempt.
///
/// Before jitter, the wait after attempt `n` is
///
/// | made with | wait |
/// |---|---|
/// | [`immediate`](Self::immediate) | 0 |
/// | [`fixed`](Self::fixed) | `base` |
/// | [`exponential`](Self::exponential) | `base · 2^(n−1)` |
///
/// and never more than the cap. [`Jitter`] spreads it, and the result stays within the cap too.
///
/// # Defaults
/// No jitter. The cap is 5 minutes, or the given duration where that is longer; nothing waits
/// longer than 365 days.
///
/// ```
/// # use std::time::Duration;
/// # use anybroker_core::{Backoff, Jitter};
/// let backoff = Backoff::exponential(Duration::from_secs(1)).cap(Duration::from_mins(1));
/// let waits: Vec<u64> = (1..=8).map(|n| backoff.delay(n, "an id").as_secs()).collect();
/// assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
///
/// let spread = backoff.jitter(Jitter::Equal);
/// assert!((2..=6).contains(&spread.delay(3, "an id").as_secs()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    doubling: bool,
    cap: Duration,
    jitter: Jitter,
}

/// How waits are spread, so that what failed together does not come back together.
///
/// With `w` for the wait before jitter, `base` and `cap` of the [`Backoff`], and `U[a, b]` for a
/// number drawn evenly from `a` to `b`:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Not at all: `w`.
    #[default]
    None,
    /// `U[0, w]`.
    Full,
    /// `U[w/2, 3w/2]` with `w` at most `2/3 · cap`. So at the cap the waits still differ, from a
    /// third of the cap to all of it, instead of half of them being the cap.
    Equal,
    /// `w + U[0, d]` with `d` at most `cap` and `w` at most `cap − d`.
    Additive(Duration),
    /// `wait(n) = U[base, min(cap, 3 · wait(n−1))]` with `wait(0) = base`, whether the backoff is
    /// fixed or exponential. Past attempt 64 only the last 64 links of that chain are computed.
    Decorrelated,
}

const DEFAULT_CAP: Duration = Duration::from_mins(5);

/// Keeps every sum with a clock's time in range.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// Enough for a chain to forget where it began.
const LONGEST_CHAIN: u32 = 64;

impl Backoff {
    /// Waits not at all.
    pub fn immediate() -> Self {
        Self::fixed(Duration::ZERO)
    }

    /// Waits as long each time.
    pub fn fixed(base: Duration) -> Self {
        let jitter = Jitter::None;
        Self { base, doubling: false, cap: DEFAULT_CAP.max(base).min(LONGEST), jitter }
    }

    /// Waits `base` after the first attempt, and twice as long after each further one.
    pub fn exponential(base: Duration) -> Self {
        Self { doubling: true, ..Self::fixed(base) }
    }

    /// Waits never longer than this, jitter included. It is also what a retry waits when the
    /// [budget](crate::RetryLayer::budget) is used up.
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap.min(LONGEST);
        self
    }

    /// Sets how waits are spread.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The wait after this attempt (1 = first) of the message with this id.
    ///
    /// Chance is drawn from the id and the attempt, so the same attempt of the same message has
    /// the same wait in every process, and a decorrelated chain needs no memory.
    pub fn delay(&self, attempt: u32, id: &str) -> Duration {
        self.delay_seeded(attempt, seed(id))
    }

    pub(crate) fn delay_seeded(&self, attempt: u32, seed: u64) -> Duration {
        let attempt = attempt.max(1);
        let cap = nanos(self.cap);
        let base = nanos(self.base).min(cap);
        let factor =
            if self.doubling { 1_u64.checked_shl(attempt - 1).unwrap_or(u64::MAX) } else { 1 };
        let wait = base.saturating_mul(factor).min(cap);
        let draw = |attempt: u32, from: u64, to: u64| {
            // Spread over all bits: seeds that differ by little give generators that do too.
            let seed = seed ^ u64::from(attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            Rng::with_seed(seed).u64(from..=to)
        };
        Duration::from_nanos(match self.jitter {
            Jitter::None => wait,
            Jitter::Full => draw(attempt, 0, wait),
            Jitter::Equal => {
                // Of both halves the floor: three of them never exceed the cap.
                let half = wait.min(cap / 3 * 2) / 2;
                draw(attempt, half, half * 3)
            }
            Jitter::Additive(spread) => {
                let spread = nanos(spread).min(cap);
                let wait = wait.min(cap - spread);
                draw(attempt, wait, wait + spread)
            }
            Jitter::Decorrelated => {
                let first = attempt.saturating_sub(LONGEST_CHAIN - 1).max(1);
                (first..=attempt).fold(base, |wait, attempt| {
                    draw(attempt, base, wait.saturating_mul(3).min(cap))
                })
            }
        })
    }

    /// The longest wait.
    pub(super) fn longest(&self) -> Duration {
        self.cap
    }
}

/// What chance is drawn from.
pub(super) fn seed(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.min(LONGEST).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn durations() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            any::<u64>().prop_map(Duration::from_nanos),
            (0_u64..10_000).prop_map(Duration::from_millis),
        ]
    }

    fn jitters() -> impl Strategy<Value = Jitter> {
        prop_oneof![
            Just(Jitter::None),
            Just(Jitter::Full),
            Just(Jitter::Equal),
            durations().prop_map(Jitter::Additive),
            Just(Jitter::Decorrelated),
        ]
    }

    fn backoffs() -> impl Strategy<Value = Backoff> {
        (durations(), any::<bool>(), prop::option::of(durations()), jitters()).prop_map(
            |(base, doubling, cap, jitter)| {
                let backoff =
                    if doubling { Backoff::exponential(base) } else { Backoff::fixed(base) };
                cap.map_or(backoff, |cap| backoff.cap(cap)).jitter(jitter)
            },
        )
    }

    fn attempts() -> impl Strategy<Value = u32> {
        prop_oneof![0_u32..100, any::<u32>(), Just(u32::MAX)]
    }

    /// The documented bounds, in whole numbers of nanoseconds.
    fn bounds(backoff: &Backoff, attempt: u32) -> (Duration, Duration) {
        let wait = backoff.jitter(Jitter::None).delay(attempt, "");
        let base = backoff.base.min(backoff.cap);
        let nano = Duration::from_nanos(1);
        match backoff.jitter {
            Jitter::None => (wait, wait),
            Jitter::Full => (Duration::ZERO, wait),
            Jitter::Equal => {
                let lowest = wait.min(backoff.cap / 3 * 2) / 2;
                (lowest.saturating_sub(nano), wait / 2 * 3 + nano * 3)
            }
            Jitter::Additive(spread) => {
                let spread = spread.min(backoff.cap);
                let wait = wait.min(backoff.cap.checked_sub(spread).unwrap());
                (wait, wait + spread)
            }
            Jitter::Decorrelated => (base, backoff.cap),
        }
    }

    proptest! {
        #[test]
        fn wait_keeps_to_its_cap_and_its_bounds(
            backoff in backoffs(), attempt in attempts(), id in "[a-z0-9]{0,8}",
        ) {
            let wait = backoff.delay(attempt, &id);
            prop_assert!(wait <= backoff.cap && wait <= LONGEST);
            let (lowest, highest) = bounds(&backoff, attempt);
            prop_assert!(lowest <= wait && wait <= highest, "{lowest:?} {wait:?} {highest:?}");
        }

        #[test]
        fn wait_never_shrinks_without_jitter(backoff in backoffs(), attempt in attempts()) {
            let backoff = backoff.jitter(Jitter::None);
            let next = attempt.saturating_add(1);
            prop_assert!(backoff.delay(attempt, "a") <= backoff.delay(next, "b"));
        }

        #[test]
        fn wait_is_the_same_in_every_process(
            backoff in backoffs(), attempt in attempts(), id in ".{0,8}",
        ) {
            prop_assert_eq!(backoff.delay(attempt, &id), backoff.delay(attempt, &id));
        }

        #[test]
        fn decorrelated_wait_is_at_most_three_times_the_one_before(
            attempt in 2_u32..60, id in "[a-z]{8}", base in 1_u64..1000,
        ) {
            let backoff = Backoff::fixed(Duration::from_millis(base)).jitter(Jitter::Decorrelated);
            prop_assert!(backoff.delay(attempt, &id) <= backoff.delay(attempt - 1, &id) * 3);
        }
    }

    #[test]
    fn waits_at_the_cap_still_differ() {
        let backoff = Backoff::exponential(Duration::from_secs(1)).cap(Duration::from_mins(1));
        let spread = Jitter::Additive(Duration::from_secs(30));
        for jitter in [Jitter::Full, Jitter::Equal, spread, Jitter::Decorrelated] {
            let backoff = backoff.jitter(jitter);
            let mut waits: Vec<_> =
                (0..1000).map(|id| backoff.delay(20, &id.to_string())).collect();
            waits.sort_unstable();
            waits.dedup();
            assert!(waits.len() > 990, "{jitter:?}: only {} different waits", waits.len());
            let mean = waits.iter().sum::<Duration>() / 1000;
            assert!((15..50).contains(&mean.as_secs()), "{jitter:?}: mean {mean:?}");
        }
    }

    #[test]
    fn attempts_of_one_message_differ() {
        let backoff = Backoff::fixed(Duration::from_secs(1)).jitter(Jitter::Full);
        let waits: Vec<_> = (1..=4).map(|attempt| backoff.delay(attempt, "same")).collect();
        assert!(waits.windows(2).all(|pair| pair[0] != pair[1]), "{waits:?}");
    }

    #[test]
    fn default_cap_does_not_shorten_what_was_asked_for() {
        let hours = Duration::from_hours(2);
        assert_eq!(Backoff::fixed(hours).delay(3, ""), hours);
        assert_eq!(Backoff::exponential(hours).delay(3, ""), hours);
        assert_eq!(Backoff::exponential(Duration::from_mins(1)).delay(9, ""), DEFAULT_CAP);
        assert_eq!(Backoff::immediate().delay(u32::MAX, ""), Duration::ZERO);
    }
}
