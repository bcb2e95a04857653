use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::{Envelope, Failure, Hop};

/// What was found in a dead-letter queue.
#[derive(Clone, Debug, Default)]
pub struct Peek {
    /// The dead letters, the oldest first.
    pub entries: Vec<DeadLetter>,
    /// Whether nothing was left out.
    pub complete: bool,
}

/// A message that a group gave up: the envelope as it was published, and why.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// As it was published.
    pub envelope: Arc<Envelope>,
    /// Attempts, first failure, and the failure itself.
    pub hop: Hop,
}

/// Which dead letters are meant; the default means all.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    ids: Option<Vec<String>>,
    reason: Option<String>,
    r#type: Option<String>,
    older_than: Option<Duration>,
}

/// Which dead letters to send back, how many and how fast; the default sends all, unhurried.
#[derive(Clone, Debug, Default)]
pub struct Redrive {
    filter: DeadLetterFilter,
    limit: Option<u64>,
    per_second: Option<u32>,
}

impl DeadLetter {
    /// Why it was given up.
    pub fn failure(&self) -> Option<&Failure> {
        self.hop.failure.as_deref()
    }
}

impl DeadLetterFilter {
    /// Means all.
    pub fn all() -> Self {
        Self::default()
    }

    /// Means only envelopes with one of these ids.
    pub fn ids(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.ids = Some(ids.into_iter().map(Into::into).collect());
        self
    }

    /// Means only those given up with this reason code.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Means only messages of this type.
    pub fn r#type(mut self, r#type: impl Into<String>) -> Self {
        self.r#type = Some(r#type.into());
        self
    }

    /// Means only those given up at least this long ago.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Whether it means a message with this failure.
    pub fn matches(&self, envelope: &Envelope, hop: &Hop, now: SystemTime) -> bool {
        let failure = hop.failure.as_deref();
        self.ids.as_ref().is_none_or(|ids| ids.contains(&envelope.id))
            && self.r#type.as_ref().is_none_or(|r#type| *r#type == envelope.r#type)
            && self.reason.as_ref().is_none_or(|reason| {
                failure.is_some_and(|failure| failure.reason == reason.as_str())
            })
            && self.older_than.is_none_or(|age| {
                failure.is_some_and(|failure| {
                    now.duration_since(failure.at).is_ok_and(|actual| actual >= age)
                })
            })
    }
}

impl Redrive {
    /// Sends all back.
    pub fn all() -> Self {
        Self::default()
    }

    /// Sends back only what the filter means.
    pub fn filter(mut self, filter: DeadLetterFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Sends back at most this many.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Sends back at most this many each second.
    pub fn per_second(mut self, rate: u32) -> Self {
        self.per_second = Some(rate.max(1));
        self
    }

    /// Which are meant.
    pub fn selected(&self) -> &DeadLetterFilter {
        &self.filter
    }

    /// How many at most.
    pub fn at_most(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }

    /// How long to wait between two.
    pub fn interval(&self) -> Option<Duration> {
        self.per_second.map(|rate| Duration::from_secs(1) / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::now;

    fn dead_letter(reason: &'static str, at: SystemTime) -> DeadLetter {
        let failure = Failure::new(reason, String::new(), "orders".into(), "email".into(), at);
        DeadLetter {
            envelope: Arc::new(Envelope::new("order.created", "").with_id("7")),
            hop: Hop { failure: Some(Box::new(failure)), ..Hop::default() },
        }
    }

    fn matches(filter: &DeadLetterFilter, letter: &DeadLetter) -> bool {
        filter.matches(&letter.envelope, &letter.hop, now())
    }

    #[test]
    fn a_filter_means_what_all_its_conditions_mean() {
        let hour = Duration::from_hours(1);
        let letter = dead_letter("expired", now() - hour);
        for (filter, expected) in [
            (DeadLetterFilter::all(), true),
            (DeadLetterFilter::all().ids(["8", "7"]), true),
            (DeadLetterFilter::all().ids(["8"]), false),
            (DeadLetterFilter::all().ids([""; 0]), false),
            (DeadLetterFilter::all().reason("expired"), true),
            (DeadLetterFilter::all().reason("exhausted"), false),
            (DeadLetterFilter::all().r#type("order.created"), true),
            (DeadLetterFilter::all().r#type("order"), false),
            (DeadLetterFilter::all().older_than(hour), true),
            (DeadLetterFilter::all().older_than(hour * 2), false),
            (DeadLetterFilter::all().ids(["7"]).reason("expired").older_than(hour), true),
            (DeadLetterFilter::all().ids(["7"]).reason("exhausted"), false),
        ] {
            assert_eq!(matches(&filter, &letter), expected, "{filter:?}");
        }
    }

    #[test]
    fn without_a_failure_only_the_envelope_is_judged() {
        let mut letter = dead_letter("", now());
        letter.hop.failure = None;
        assert!(letter.failure().is_none());
        assert!(matches(&DeadLetterFilter::all().ids(["7"]), &letter));
        assert!(!matches(&DeadLetterFilter::all().reason(""), &letter));
        assert!(!matches(&DeadLetterFilter::all().older_than(Duration::ZERO), &letter));
    }

    #[test]
    fn a_clock_behind_that_of_the_failure_makes_nothing_old() {
        let letter = dead_letter("expired", now() + Duration::from_hours(1));
        assert!(!matches(&DeadLetterFilter::all().older_than(Duration::ZERO), &letter));
    }

    #[test]
    fn a_redrive_sends_all_at_once_unless_limited() {
        assert_eq!(Redrive::all().at_most(), u64::MAX);
        assert_eq!(Redrive::all().interval(), None);
        let redrive = Redrive::all().limit(3).per_second(4);
        assert_eq!((redrive.at_most(), redrive.interval()), (3, Some(Duration::from_millis(250))));
        assert_eq!(Redrive::all().per_second(0).interval(), Some(Duration::from_secs(1)));
    }
}
