use std::time::SystemTime;

use anybroker_core::{DeadLetter, DeadLetterFilter, Peek};

use crate::entry::Entry;

/// The dead-letter queue of a group, the oldest first.
#[derive(Default)]
pub(crate) struct DeadLetters {
    /// With a number each, in rising order.
    letters: Vec<(u64, Entry)>,
    next: u64,
}

impl DeadLetters {
    pub(crate) fn push(&mut self, entry: Entry) {
        self.letters.push((self.next, entry));
        self.next += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    /// The number that the next dead letter gets: those below it are there already.
    pub(crate) fn end(&self) -> u64 {
        self.next
    }

    pub(crate) fn peek(&self, filter: &DeadLetterFilter, limit: usize, now: SystemTime) -> Peek {
        let mut peek = Peek { entries: Vec::new(), complete: true };
        for (_, entry) in &self.letters {
            if !is_meant(entry, filter, now) {
                continue;
            }
            if peek.entries.len() == limit {
                peek.complete = false;
                break;
            }
            let hop = entry.hop.as_deref().cloned().unwrap_or_default();
            peek.entries.push(DeadLetter { envelope: entry.envelope.clone(), hop });
        }
        peek
    }

    /// Takes out up to `limit` of those below the number `end`.
    pub(crate) fn take(
        &mut self,
        filter: &DeadLetterFilter,
        limit: usize,
        end: u64,
        now: SystemTime,
    ) -> Vec<Entry> {
        let meant =
            |(number, entry): &mut (u64, Entry)| *number < end && is_meant(entry, filter, now);
        self.letters.extract_if(.., meant).take(limit).map(|(_, entry)| entry).collect()
    }

    /// Takes out all.
    pub(crate) fn clear(&mut self) -> Vec<(u64, Entry)> {
        std::mem::take(&mut self.letters)
    }
}

fn is_meant(entry: &Entry, filter: &DeadLetterFilter, now: SystemTime) -> bool {
    entry.hop.as_deref().is_some_and(|hop| filter.matches(&entry.envelope, hop, now))
}
