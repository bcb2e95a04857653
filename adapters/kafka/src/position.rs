//! What a group's committed offset says beside the offset itself, in its metadata.

use std::fmt::Write;
use std::sync::Arc;

/// What is known of a partition beyond its finished prefix.
///
/// # Format
/// `ab1;100;open;3;5;9;2;1-3,7-9;2:3;ID`: the offset it is committed with, whether the owner let go
/// in order (`clean`), the fields below in their order; offsets are counted from the committed one.
/// Metadata of anybody else counts as none, and so does what was copied to another offset, as tools
/// do that move groups between clusters. The topic's id is missing where it was not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Everything below is finished.
    pub(crate) offset: i64,
    /// Whether the owner is at work, or ended without letting go.
    pub(crate) open: bool,
    /// Unfinished messages below may have been dispatched at two ends without letting go: one of
    /// them may be the cause.
    pub(crate) suspects: i64,
    /// Those below may have been at one.
    pub(crate) witnesses: i64,
    /// Messages from here on were not dispatched.
    pub(crate) until: i64,
    /// How many are handed out.
    pub(crate) out: i64,
    /// Finished, from each start to before its end; ascending.
    pub(crate) done: Vec<(i64, i64)>,
    /// How often a message came back, where that is not what its place says.
    pub(crate) returned: Vec<(i64, u32)>,
    /// The id of the topic that the offsets are of, see [`identity`](crate::identity).
    pub(crate) topic_id: Option<Arc<str>>,
}

/// The broker's `offset.metadata.max.bytes` is 4096 unless it says otherwise.
const LONGEST: usize = 4000;

const VERSION: &str = "ab1";

impl Position {
    /// Reads the metadata of a committed offset.
    pub(crate) fn read(offset: i64, metadata: &str) -> Self {
        Self::parse(offset, metadata).unwrap_or_else(|| Self::at(offset))
    }

    /// All from this offset on is new.
    pub(crate) fn at(offset: i64) -> Self {
        Self { offset, suspects: offset, witnesses: offset, until: offset, ..Self::default() }
    }

    /// How often an unfinished message may have come back.
    pub(crate) fn may_have_returned(&self, offset: i64) -> u32 {
        u32::from(offset < self.suspects) + u32::from(offset < self.witnesses)
    }

    /// Whether it is of a topic that was deleted: the one of today has another id.
    pub(crate) fn is_of_another(&self, topic_id: Option<&str>) -> bool {
        let known = self.topic_id.as_deref().zip(topic_id);
        known.is_some_and(|(committed, today)| committed != today)
    }

    fn parse(offset: i64, metadata: &str) -> Option<Self> {
        let mut parts = metadata.split(';');
        if parts.next()? != VERSION {
            return None;
        }
        if parts.next()?.parse() != Ok(offset) {
            return None;
        }
        let open = parts.next()? == "open";
        let number = |text: &str| text.parse::<i64>().ok()?.checked_add(offset);
        let suspects = number(parts.next()?)?;
        let witnesses = number(parts.next()?)?;
        let until = number(parts.next()?)?;
        let out = parts.next()?.parse().ok()?;
        let pairs = |text: &'_ str, by| {
            let text = text.to_owned();
            let pair =
                move |pair: &str| pair.split_once(by).map(|(a, b)| (a.to_owned(), b.to_owned()));
            text.split(',').filter(|pair| !pair.is_empty()).map(pair).collect::<Option<Vec<_>>>()
        };
        let mut done = Vec::new();
        for (start, end) in pairs(parts.next()?, '-')? {
            done.push((number(&start)?, number(&end)?));
        }
        let mut returned = Vec::new();
        for (place, count) in pairs(parts.next()?, ':')? {
            returned.push((number(&place)?, count.parse().ok()?));
        }
        let topic_id = parts.next().filter(|id| !id.is_empty()).map(Arc::from);
        Some(Self { offset, open, suspects, witnesses, until, out, done, returned, topic_id })
    }

    /// Writes the metadata. What does not fit is left out: counts first come, then the earliest
    /// ranges, so that a later owner repeats more, and loses nothing.
    pub(crate) fn metadata(&self) -> String {
        let relative = |offset: i64| (offset - self.offset).max(0);
        let state = if self.open { "open" } else { "clean" };
        let [suspects, witnesses, until] =
            [self.suspects, self.witnesses, self.until].map(relative);
        let out = self.out;
        let mut counts = String::new();
        for (place, count) in &self.returned {
            if counts.len() > LONGEST / 2 {
                break;
            }
            let comma = if counts.is_empty() { "" } else { "," };
            // Writing into a text does not fail.
            let _ = write!(counts, "{comma}{}:{count}", relative(*place));
        }
        let offset = self.offset;
        let mut text = format!("{VERSION};{offset};{state};{suspects};{witnesses};{until};{out};");
        let room = LONGEST.saturating_sub(counts.len() + 72);
        for (index, (start, end)) in self.done.iter().enumerate() {
            if text.len() > room {
                break;
            }
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{}-{}", relative(*start), relative(*end));
        }
        text.push(';');
        text.push_str(&counts);
        if let Some(id) = &self.topic_id {
            text.push(';');
            text.push_str(id);
        }
        text
    }

    /// How many finished offsets lie beyond the prefix.
    pub(crate) fn finished_ahead(&self) -> i64 {
        self.done.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether an offset is finished.
    pub(crate) fn is_done(&self, offset: i64) -> bool {
        offset < self.offset
            || self.done.iter().any(|(start, end)| (*start..*end).contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            offset: 100,
            open: true,
            suspects: 103,
            witnesses: 105,
            until: 109,
            out: 2,
            done: vec![(101, 103), (107, 109)],
            returned: vec![(104, 3), (106, 1)],
            topic_id: None,
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let position = position();
        assert_eq!(position.metadata(), "ab1;100;open;3;5;9;2;1-3,7-9;4:3,6:1");
        assert_eq!(Position::read(100, &position.metadata()), position);
        let known = Position { topic_id: Some("id".into()), ..position };
        assert_eq!(known.metadata(), "ab1;100;open;3;5;9;2;1-3,7-9;4:3,6:1;id");
        assert_eq!(Position::read(100, &known.metadata()), known);
        let of_another = [Some("id"), None, Some("other")].map(|id| known.is_of_another(id));
        assert_eq!(of_another, [false, false, true]);
        let empty = Position::at(7);
        assert_eq!(empty.metadata(), "ab1;7;clean;0;0;0;0;;");
        assert_eq!(Position::read(7, &empty.metadata()), empty);
    }

    #[test]
    fn what_others_wrote_counts_as_nothing() {
        let nothing = Position::at(7);
        for metadata in [
            "",
            "their own",
            "ab2;7;open;1;1;1;1;;",
            "ab1;7;open;x;1;1;1;;",
            "ab1;7;open;1;1;1;1;1;",
            "ab1;8;open;1;1;1;1;1-3;",
            "ab1;open;1;1;1;1;1-3;",
            "ab1",
        ] {
            assert_eq!(Position::read(7, metadata), nothing, "{metadata:?}");
        }
    }

    #[test]
    fn it_never_outgrows_what_the_broker_takes() {
        let mut position = position();
        position.done = (0..5000).map(|n| (101 + 2 * n, 102 + 2 * n)).collect();
        position.returned = (0..5000).map(|n| (102 + 2 * n, u32::MAX)).collect();
        position.topic_id = Some("an id of 22 characters".into());
        let metadata = position.metadata();
        assert!(metadata.len() <= 4096, "{}", metadata.len());
        let read = Position::read(100, &metadata);
        assert!(!read.done.is_empty() && position.done.starts_with(&read.done));
        assert!(!read.returned.is_empty() && position.returned.starts_with(&read.returned));
    }

    #[test]
    fn it_knows_what_is_finished() {
        let position = position();
        assert_eq!(position.finished_ahead(), 4);
        let returned = [102, 104, 106].map(|offset| position.may_have_returned(offset));
        assert_eq!(returned, [2, 1, 0]);
        for (offset, done) in [(99, true), (100, false), (101, true), (103, false), (108, true)] {
            assert_eq!(position.is_done(offset), done, "{offset}");
        }
    }
}
