//! Batches that the client cannot unpack, and so cannot read past: each stops its partition.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anybroker_core::{ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::ask::ANSWER;
use crate::client::{Clients, Context};
use crate::error::{code, error_of, failed};

/// How often a batch before which a partition stands is looked at, and named.
const AGAIN: Duration = Duration::from_secs(30);

/// The batches that a handle could not unpack, by their first offsets.
#[derive(Default)]
pub(crate) struct Unreadable(Mutex<Found>);

#[derive(Default)]
struct Found {
    last: Option<i64>,
    /// When each was looked at last.
    looked: HashMap<i64, Instant>,
}

impl Unreadable {
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an error of the client, which may tell of one.
    pub(crate) fn note(&self, reason: &str) {
        if let Some(batch) = offset_of(reason) {
            self.lock().last = Some(batch);
        }
    }

    /// The one that was found last, if any was since this was asked.
    pub(crate) fn take(&self) -> Option<i64> {
        self.lock().last.take()
    }

    /// Whether it is time to look at this one, and to name it: at once, and then each 30 s.
    pub(crate) fn is_due(&self, batch: i64) -> bool {
        let mut found = self.lock();
        found.looked.retain(|_, at| at.elapsed() < AGAIN);
        let due = !found.looked.contains_key(&batch);
        if due {
            found.looked.insert(batch, Instant::now());
        }
        due
    }
}

/// The first offset behind a batch that begins at this one and cannot be unpacked, in a log with this
/// end; none where the partition can be read there. It blocks.
///
/// The client does not say where such a batch ends, but to whoever reads from its middle it names its
/// beginning.
pub(crate) fn behind(
    clients: &Clients,
    group: &str,
    partition: (&str, i32),
    batch: i64,
    end: i64,
) -> Result<Option<i64>> {
    let options = [
        // A name is needed, though it neither joins nor commits.
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("fetch.wait.max.ms", "10"),
        ("fetch.error.backoff.ms", "10"),
    ];
    let reader = clients.reader(&options)?;
    let is_within = |offset| is_within(&reader, partition, offset, batch);
    if !is_within(batch)? {
        return Ok(None);
    }
    let (mut within, mut step) = (batch, 1);
    let mut behind = loop {
        let next = within + step;
        if next >= end {
            break end;
        } else if !is_within(next)? {
            break next;
        }
        (within, step) = (next, step * 2);
    };
    while behind - within > 1 {
        let middle = within + (behind - within) / 2;
        *(if is_within(middle)? { &mut within } else { &mut behind }) = middle;
    }
    Ok(Some(behind))
}

/// Whether an offset is in this batch, which cannot be unpacked.
fn is_within(
    reader: &BaseConsumer<Context>,
    (topic, number): (&str, i32),
    offset: i64,
    batch: i64,
) -> Result<bool> {
    let failure = |error| failed("read", &format!("{topic}[{number}]"), error);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, number, Offset::Offset(offset)).map_err(failure)?;
    reader.context().unreadable.take();
    reader.assign(&list).map_err(failure)?;
    let end = Instant::now() + ANSWER;
    while Instant::now() < end {
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(false),
            Some(Err(error)) if code(&error) == Some(RDKafkaErrorCode::BadCompression) => {
                return Ok(reader.context().unreadable.take() == Some(batch));
            }
            // The client tries again.
            Some(Err(_)) | None => {}
        }
    }
    let text = format!("{topic}[{number}] did not answer in {ANSWER:?}");
    Err(error_of(ErrorKind::Unavailable, "read", text))
}

/// The offset of the batch that an error of the client tells of. It does not say the partition.
fn offset_of(reason: &str) -> Option<i64> {
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
        unreadable.note(said);
        assert_eq!((unreadable.take(), unreadable.take()), (Some(17), None));
        assert!(unreadable.is_due(17) && !unreadable.is_due(17) && unreadable.is_due(18));
    }
}
