use std::fmt;
use std::iter::Sum;

/// What a worker did, counted once each outcome was settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Acknowledged.
    pub handled: u64,
    /// Attempts that failed and were repeated or are to be repeated.
    pub retried: u64,
    /// Given up.
    pub dead_lettered: u64,
    /// Given back untouched.
    pub released: u64,
    /// Expired and, as the subscription says, discarded.
    pub discarded: u64,
    /// Settlements that came too late: the message was or will be delivered once more.
    pub stale: u64,
    /// Settlements that failed otherwise, or were not answered: the message comes back.
    pub unsettled: u64,
}

impl Sum for Report {
    fn sum<I: Iterator<Item = Self>>(reports: I) -> Self {
        reports.fold(Self::default(), |sum, one| Self {
            handled: sum.handled + one.handled,
            retried: sum.retried + one.retried,
            dead_lettered: sum.dead_lettered + one.dead_lettered,
            released: sum.released + one.released,
            discarded: sum.discarded + one.discarded,
            stale: sum.stale + one.stale,
            unsettled: sum.unsettled + one.unsettled,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "handled {} · retried {} · dead-lettered {} · released {}",
            self.handled, self.retried, self.dead_lettered, self.released
        )?;
        for (name, count) in
            [("discarded", self.discarded), ("stale", self.stale), ("unsettled", self.unsettled)]
        {
            if count > 0 {
                write!(f, " · {name} {count}")?;
            }
        }
        Ok(())
    }
}
