use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::adapter::Background;

/// How often the background thread notes that the process runs.
const BEAT: Duration = Duration::from_millis(500);

/// Without a beat for so long, the process has stood still: it was stopped, or its machine swapped.
/// The sleep of a whole machine is not seen, since the clock of Linux stands still with it.
///
/// It is shorter than what brokers allow a client before they give its messages to somebody else:
/// sessions and heartbeats of 6 s and more, as brokers are set up. A lease may be shorter, but its
/// end is counted in this process.
const STILL: Duration = Duration::from_secs(3);

/// How long a client needs at most, once the process runs again, to find out that its connection
/// was closed or its partitions were given to somebody else.
const GRACE: Duration = Duration::from_secs(1);

/// Finds out that the whole process stood still, which no deadline inside of it can tell: what it
/// held may have come to another process meanwhile, and the client says so only after it has run
/// for a moment.
///
/// All workers share one beat. Times are microseconds since the first use.
#[derive(Debug)]
pub(super) struct Standstill {
    began: Instant,
    /// When the background thread last noted that the process runs.
    beat: AtomicU64,
    /// Until when nothing is to be started, after the last standstill that the beat found.
    grace: AtomicU64,
}

impl Standstill {
    pub(super) fn watch() -> &'static Self {
        static SHARED: OnceLock<Standstill> = OnceLock::new();
        let mut first = false;
        let shared = SHARED.get_or_init(|| {
            first = true;
            Self::new(Instant::now())
        });
        if first {
            Background::spawn(async {
                loop {
                    tokio::time::sleep(BEAT).await;
                    if let Some(still) = shared.note(Instant::now()) {
                        tracing::warn!(
                            seconds = still.as_secs(),
                            "this process stood still; its workers start nothing for a second, until it is known what is still theirs"
                        );
                    }
                }
            });
        }
        shared
    }

    fn new(began: Instant) -> Self {
        Self { began, beat: AtomicU64::new(0), grace: AtomicU64::new(0) }
    }

    /// Notes that the process runs; returns how long it had stood still, if it had.
    fn note(&self, now: Instant) -> Option<Duration> {
        let now = self.micros(now);
        let before = self.beat.load(Ordering::Relaxed);
        let still = Duration::from_micros(now.saturating_sub(before));
        if still > STILL {
            // The beat last: a loop that has read it reads the grace, too.
            self.grace.store(now + micros(GRACE), Ordering::Release);
        }
        self.beat.store(now, Ordering::Release);
        (still > STILL).then_some(still)
    }

    /// For how long from now on nothing is to be started.
    pub(super) fn grace(&self, now: Instant) -> Option<Duration> {
        let now = self.micros(now);
        let beat = self.beat.load(Ordering::Acquire);
        if now.saturating_sub(beat) > micros(STILL) {
            // The loop runs again before the beat does.
            return Some(GRACE);
        }
        let left = self.grace.load(Ordering::Relaxed).saturating_sub(now);
        (left > 0).then(|| Duration::from_micros(left))
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.began))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_started_for_a_second_after_a_standstill_whoever_notices_it() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let standstill = Standstill::new(began);
        assert_eq!(standstill.note(at(500)), None);
        assert_eq!(standstill.grace(at(3_400)), None, "a beat that is late is no standstill");
        // A loop runs first, then the beat.
        assert_eq!(standstill.grace(at(10_000)), Some(GRACE));
        assert_eq!(standstill.note(at(10_100)), Some(Duration::from_millis(9_600)));
        assert_eq!(standstill.grace(at(10_600)), Some(Duration::from_millis(500)));
        assert_eq!(standstill.note(at(10_600)), None);
        assert_eq!(standstill.grace(at(11_200)), None);
    }
}
