//! Which topic a name means. A topic that was deleted and made again under the same name has another
//! id, and an offset of the first one says nothing about the second.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The debug context whose lines name the ids: the client shows them in no other way.
pub(crate) const LOGGED: &str = "metadata";

/// What the client writes for a topic whose id it does not know yet.
const UNKNOWN: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The topics' ids, as a handle of the client last learned them.
///
/// Where the client says nothing (another version, other words), the ids stay unknown, and what
/// depends on them falls back on the end of the log.
#[derive(Default)]
pub(crate) struct TopicIds {
    known: Mutex<HashMap<String, Arc<str>>>,
    lines: AtomicU64,
}

impl TopicIds {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a line of the client's log says. Returns the topic that had another id before.
    pub(crate) fn note<'a>(&self, line: &'a str) -> Option<&'a str> {
        self.lines.fetch_add(1, Ordering::Relaxed);
        let (topic, before, id) = changed(line)?;
        let noted = self.lock().insert(topic.to_owned(), id.into());
        // A handle that has let a topic go learns its id anew.
        let before = noted.as_deref().or((before != UNKNOWN).then_some(before));
        (before.is_some_and(|before| before != id)).then_some(topic)
    }

    /// How many lines were logged. A poll of the client hands over one at a time, and looks as if
    /// nothing had come.
    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    pub(crate) fn of(&self, topic: &str) -> Option<Arc<str>> {
        self.lock().get(topic).cloned()
    }
}

/// Reads `… Topic NAME changed id from ID to ID`.
fn changed(line: &str) -> Option<(&str, &str, &str)> {
    let (before, change) = line.split_once(" changed id from ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    let (from, to) = change.split_once(" to ")?;
    (to != UNKNOWN && !to.contains(';')).then_some((topic, from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_whose_id_changed_is_another_one() {
        let ids = TopicIds::default();
        let line = |from: &str, to: &str| {
            format!("[thrd:main]: Topic orders.new changed id from {from} to {to}")
        };
        assert_eq!(ids.note("[thrd:main]: Topic orders.new partition 0 Leader 1"), None);
        assert_eq!(ids.of("orders.new"), None);
        assert_eq!(ids.note(&line(UNKNOWN, "one")), None, "it is the first");
        assert_eq!(ids.note(&line(UNKNOWN, "one")), None, "it is the same");
        assert_eq!(ids.of("orders.new").as_deref(), Some("one"));
        assert_eq!(ids.note(&line("one", "two")), Some("orders.new"));
        assert_eq!(ids.note(&line(UNKNOWN, "three")), Some("orders.new"));
        assert_eq!(ids.of("orders.new").as_deref(), Some("three"));
    }
}
