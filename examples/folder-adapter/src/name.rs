use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anybroker_core::adapter::stable_hash;

pub(crate) const FREE: u64 = 0;
pub(crate) const HELD: u64 = 1;
pub(crate) const DEAD: u64 = 2;

/// What a file's name says of its message. In the order of names, messages are in the order of
/// their sends.
///
/// Nobody gets a message before its `due`: a delay, a pause before a retry and a lease are one and
/// the same thing. And the name is the fence: whoever took the message last has given it the name by
/// which it is settled, and who had it before finds no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Nanoseconds since 1970 at which it was sent, or a moment later where that keeps the order.
    pub(crate) at: u64,
    /// The connection that sent it: two may send at the same time.
    pub(crate) by: u64,
    /// A number for the key; 0 where there is none.
    pub(crate) key: u64,
    /// Nanoseconds since 1970.
    pub(crate) due: u64,
    /// How often this copy was handed out.
    pub(crate) deliveries: u32,
    /// [`FREE`], [`HELD`] until it is due, or [`DEAD`].
    pub(crate) state: u64,
}

impl Name {
    /// Reads a file's name; `None` for a file that is no message.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<u64> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [at, by, key, due, deliveries, state] = *parts else { return None };
        Some(Self { at, by, key, due, deliveries: deliveries.try_into().ok()?, state })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, by, key, due, deliveries, state } = self;
        write!(f, "{at:020}.{by}.{key}.{due}.{deliveries}.{state}")
    }
}

/// The time in nanoseconds, until the year 2554.
pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    u64::try_from(since).unwrap_or(u64::MAX)
}

/// The number of a key.
pub(crate) fn number(key: Option<&str>) -> u64 {
    key.map_or(0, |key| stable_hash(key).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let name = Name { at: 7, by: 9, key: 3, due: 12, deliveries: 2, state: HELD };
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for text in ["", "shape", "new.1.2", "1.2.3.4.5.x", "1.2.3.4.5.6.7"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
