use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// What a message is remembered by: 128 bits of its group, source and id.
///
/// The same in every process, version and language, so that stores can be shared: XXH3-128 of the
/// parts' own XXH3-128 (little-endian, one after the other; parts of a fixed size cannot run into
/// each other). That makes a store's keys small and all of one size. Two keys meet by accident
/// once in 10²¹ stores of a thousand million keys each, and even then a skipped message takes 64
/// equal bits of the payload's hash on top. The hash is no defence against someone who
/// forges ids; neither would the id itself be.
///
/// ```
/// # use anybroker_core::IdempotencyKey;
/// let key = IdempotencyKey::new("email", "/shop", "order-7");
/// assert_ne!(key, IdempotencyKey::new("billing", "/shop", "order-7"));
/// assert_eq!(key.to_string().len(), 32);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdempotencyKey([u64; 2]);

impl IdempotencyKey {
    /// The key of the message with this id and source, for this group.
    pub fn new(group: &str, source: &str, id: &str) -> Self {
        let mut parts = [0; 48];
        for (slot, part) in parts.chunks_exact_mut(16).zip([group, source, id]) {
            slot.copy_from_slice(&xxh3_128(part.as_bytes()).to_le_bytes());
        }
        Self::hash(&parts)
    }

    /// A key of the application's own, for this group. It never equals one made with
    /// [`new`](Self::new).
    pub fn custom(group: &str, key: &str) -> Self {
        let mut parts = [0; 32];
        for (slot, part) in parts.chunks_exact_mut(16).zip([group, key]) {
            slot.copy_from_slice(&xxh3_128(part.as_bytes()).to_le_bytes());
        }
        Self::hash(&parts)
    }

    fn hash(parts: &[u8]) -> Self {
        let hash = xxh3_128(parts).to_le_bytes();
        let (words, _) = hash.as_chunks();
        Self([u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])])
    }

    /// Two words of evenly spread bits.
    pub(super) fn words(self) -> [u64; 2] {
        self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.0;
        write!(f, "{high:016x}{low:016x}")
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a payload is recognised by: its XXH3-64, which is stable like the key, and reads a payload
/// at memory speed where a byte-wise hash takes a nanosecond for each byte.
pub(super) fn fingerprint(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_for_ever() {
        // Stores outlive processes: a change here forgets every message they know. The values come
        // from the reference implementation in C.
        let key = IdempotencyKey::new("email", "/shop", "order-7");
        assert_eq!(key.to_string(), "334f768c275d122ca47880acfc3a4870");
        let own = IdempotencyKey::custom("email", "order-7");
        assert_eq!(own.to_string(), "e55c55ac37de88d9a2023278d1ffc54f");
        assert_eq!(fingerprint(br#"{"order":7}"#), 0x9403_134F_0260_4DC7);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let key = IdempotencyKey::new("a", "b", "cd");
        for other in [("a", "bc", "d"), ("ab", "", "cd"), ("", "ab", "cd"), ("a", "b", "c")] {
            assert_ne!(key, IdempotencyKey::new(other.0, other.1, other.2), "{other:?}");
        }
        assert_ne!(IdempotencyKey::new("a", "", "b"), IdempotencyKey::custom("a", "b"));
    }
}
