//! Batches that the client cannot unpack, and so cannot read past: each stops its partition.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is said that a partition still stands.
const AGAIN: Duration = Duration::from_secs(30);

/// Which offsets a member of a group found unreadable, and when it said so last.
#[derive(Default)]
pub(crate) struct Unreadable(Mutex<HashMap<i64, Instant>>);

impl Unreadable {
    /// Whether it is time to say that this offset is unreadable: at once, and then each 30 s.
    pub(crate) fn is_news(&self, offset: i64) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|_, at| at.elapsed() < AGAIN);
        let news = !said.contains_key(&offset);
        if news {
            said.insert(offset, Instant::now());
        }
        news
    }
}

/// The offset of the batch that an error of the client tells of: it says the partition to nobody.
pub(crate) fn offset_of(reason: &str) -> Option<i64> {
    let (_, rest) = reason.strip_prefix("Decompression (codec ")?.split_once(" of message at ")?;
    rest.split_once(' ')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_batch_is_read_from_what_the_client_says() {
        let said = "Decompression (codec 0x4) of message at 17 of 2951 bytes failed: Local: Bad";
        assert_eq!(offset_of(said), Some(17));
        assert_eq!(offset_of("1/1 brokers are down"), None);
        let unreadable = Unreadable::default();
        assert!(unreadable.is_news(17) && !unreadable.is_news(17) && unreadable.is_news(18));
    }
}
