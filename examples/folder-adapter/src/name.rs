use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a file's name says of its message; in the order of names, messages are in the order of
/// their sends.
///
/// A message is free for whoever comes first once its `due` has passed: a delay, a lease and a
/// release with a pause are all one thing, a time in the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Nanoseconds since 1970 at which it was sent, or later where that keeps the order.
    pub(crate) at: u64,
    /// The connection that sent it: two may send at the same time.
    pub(crate) by: u64,
    /// A number for the key; 0 where there is none.
    pub(crate) key: u64,
    /// Milliseconds since 1970 until which nobody gets it.
    pub(crate) due: u64,
    /// How often this copy was handed out.
    pub(crate) deliveries: u32,
    /// Whether somebody has it, until it is due.
    pub(crate) held: bool,
}

impl Name {
    /// Reads a file's name; `None` for a file that is no message.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('.').collect();
        let [at, by, key, due, deliveries, state] = *parts else { return None };
        Some(Self {
            at: at.parse().ok()?,
            by: u64::from_str_radix(by, 16).ok()?,
            key: u64::from_str_radix(key, 16).ok()?,
            due: due.parse().ok()?,
            deliveries: deliveries.parse().ok()?,
            held: state == "held",
        })
    }

    /// The name while a consumer has it, until `due`.
    pub(crate) fn held_until(&self, due: u64) -> Self {
        Self { due, held: true, ..self.clone() }
    }

    /// The name when it is given back: what was handed out counts.
    pub(crate) fn freed(&self) -> Self {
        Self { due: 0, held: false, ..self.clone() }
    }

    /// The name of a new copy in the same place of the order.
    pub(crate) fn copy(&self, not_before: Option<SystemTime>) -> Self {
        Self { due: due(not_before), deliveries: 0, held: false, ..self.clone() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, by, key, due, deliveries, held } = self;
        let state = if *held { "held" } else { "free" };
        write!(f, "{at:020}.{by:016x}.{key:016x}.{due}.{deliveries}.{state}")
    }
}

/// The time from which a message may be had, rounded up so that it is never early.
pub(crate) fn due(not_before: Option<SystemTime>) -> u64 {
    not_before.map_or(0, |time| millis(time + Duration::from_nanos(999_999)))
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that all processes and versions give a key (FNV-1a).
pub(crate) fn number(key: Option<&str>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    key.map_or(0, |key| key.bytes().fold(0xcbf2_9ce4_8422_2325, step).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let name = Name { at: 7, by: 0xab, key: 3, due: 12, deliveries: 2, held: true };
        assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
        assert_eq!(Name::parse(&name.freed().to_string()), Some(name.freed()));
        for text in ["", "lock", "a.b.c.d.e.free", "1.2.3.4.5.6.free"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_rounded_up_to_milliseconds() {
        let time = |nanos| Some(UNIX_EPOCH + Duration::from_nanos(nanos));
        assert_eq!([due(None), due(time(1)), due(time(1_000_000))], [0, 1, 1]);
    }
}
