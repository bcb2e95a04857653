//! Which suspects of a partition are handed out together.
//!
//! After two ends without letting go in a row, one of the messages that were handed out may be what
//! ends the process; but mostly it was the network, or the broker. So all of them run together once
//! more. If that ends the process too, the next owner tries half as many at once, and so on until the
//! cause is alone; each lot that passes lets the next one be twice as large. What is tried is committed
//! before: the next owner counts a run for each of them, and for nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How many are tried together at most: so many counts have room in a commit's metadata.
const MOST: usize = 128;

/// The suspects of one partition that are handed out.
pub(crate) struct Trial {
    out: BTreeSet<i64>,
    since: Option<Instant>,
    /// How many may be tried at once.
    most: usize,
    permit: Option<Permit>,
}

/// Which trials of this process run: any number, or one that decides whether its message is given up,
/// and would give it up for what happens beside it.
#[derive(Clone, Default)]
pub(crate) struct Court(Arc<AtomicUsize>);

/// Held while a trial runs.
pub(crate) struct Permit {
    court: Court,
    decides: bool,
}

const DECIDES: usize = usize::MAX;

impl Court {
    /// Lets a trial begin, unless one runs that it must not be beside.
    pub(crate) fn permit(&self, decides: bool) -> Option<Permit> {
        let enter = |running| match running {
            0 if decides => Some(DECIDES),
            DECIDES => None,
            running => (!decides).then_some(running + 1),
        };
        let entered = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter);
        entered.is_ok().then(|| Permit { court: self.clone(), decides })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.decides {
            self.court.0.store(0, Ordering::SeqCst);
        } else {
            self.court.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Default for Trial {
    fn default() -> Self {
        Self { out: BTreeSet::new(), since: None, most: MOST, permit: None }
    }
}

impl Trial {
    /// After an end without letting go, with so many handed out.
    pub(crate) fn after_crash(out: i64) -> Self {
        Self { most: usize::try_from(out / 2).unwrap_or(0).clamp(1, MOST), ..Self::default() }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    pub(crate) fn start(&mut self, out: impl Iterator<Item = i64>, permit: Permit) {
        self.out = out.collect();
        self.permit = Some(permit);
        self.since = (!self.out.is_empty()).then(Instant::now);
    }

    pub(crate) fn cancel(&mut self) {
        self.out.clear();
        (self.since, self.permit) = (None, None);
    }

    /// States that one of them came to its end, and the process did not.
    pub(crate) fn finished(&mut self, offset: i64) {
        if self.out.remove(&offset) && self.out.is_empty() {
            self.end();
        }
    }

    /// Lets others go on beside those that take longer.
    pub(crate) fn end_after(&mut self, longest: Duration) {
        if self.since.is_some_and(|since| since.elapsed() > longest) {
            self.end();
        }
    }

    fn end(&mut self) {
        self.cancel();
        self.most = (2 * self.most).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_decides_runs_alone() {
        let court = Court::default();
        let one = court.permit(false).expect("none runs");
        let other = court.permit(false).expect("none decides");
        assert!(court.permit(true).is_none());
        drop((one, other));
        let decisive = court.permit(true).expect("none runs");
        assert!(court.permit(false).is_none() && court.permit(true).is_none());
        drop(decisive);
        assert!(court.permit(false).is_some());
    }
}
