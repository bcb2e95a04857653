use std::fmt;

/// An entry's id: milliseconds and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(crate) u64, pub(crate) u64);

impl Id {
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (ms, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(ms.parse().ok()?, number.parse().ok()?))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_numbers() {
        assert_eq!(Id::parse(b"17-3").map(|id| id.to_string()).as_deref(), Some("17-3"));
        assert!(Id::parse(b"9-0") < Id::parse(b"10-0"));
        for text in [&b""[..], b"17", b"a-1", b"1-", b"\xff-1"] {
            assert_eq!(Id::parse(text), None);
        }
    }
}
