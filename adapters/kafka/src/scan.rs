//! Reading a part of a topic without being a member of a group. It blocks.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anybroker_core::{ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::ask::{ANSWER, patiently};
use crate::client::{Clients, Context};
use crate::error::{code, error_of, failed};

/// What is to be read of one partition: from an offset to before another.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) from: i64,
    pub(crate) end: i64,
}

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Reads the ranges, of one topic, in no particular order of partitions, until `visit` answers false.
///
/// # Errors
/// `Unsupported` for a batch that cannot be unpacked.
pub(crate) fn scan(
    clients: &Clients,
    group: &str,
    mut ranges: Vec<Range>,
    mut visit: impl FnMut(&BorrowedMessage<'_>) -> Result<bool>,
) -> Result<()> {
    ranges.retain(|range| range.from < range.end);
    if ranges.is_empty() {
        return Ok(());
    }
    let options = [
        // A name is needed, though it neither joins nor commits.
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "earliest"),
        ("fetch.wait.max.ms", "10"),
    ];
    let reader: BaseConsumer<Context> = clients.reader(&options)?;
    let failure = |error| failed("read", &format!("the topics of group {group:?}"), error);
    let mut list = TopicPartitionList::new();
    for range in &ranges {
        let from = Offset::Offset(range.from);
        list.add_partition_offset(&range.topic, range.partition, from).map_err(failure)?;
    }
    reader.assign(&list).map_err(failure)?;
    let mut heard = Instant::now();
    let mut asked = HashSet::new();
    while !ranges.is_empty() {
        if heard.elapsed() > PATIENCE {
            let text = format!("the broker did not answer in {PATIENCE:?}");
            return Err(error_of(ErrorKind::Unavailable, "read", text));
        }
        match reader.poll(Duration::from_millis(100)) {
            None => {}
            // What is left of the range is no message: transactions leave such offsets. But a new
            // leader may not know the end yet; only one that knows it is believed.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let found = ranges.iter().position(|range| range.partition == partition);
                let Some(index) = found else { continue };
                if asked.contains(&partition) {
                    ranges.swap_remove(index);
                    continue;
                }
                let Range { topic, from, end, .. } = &ranges[index];
                let ask = || reader.fetch_watermarks(topic, partition, ANSWER);
                if patiently(&clients.cluster, ask).map_err(failure)?.1 >= *end {
                    asked.insert(partition);
                }
                let from = Offset::Offset(*from);
                reader.seek(topic, partition, from, ANSWER).map_err(failure)?;
            }
            Some(Err(error)) if code(&error) == Some(RDKafkaErrorCode::BadCompression) => {
                return Err(failure(error));
            }
            // The client mends what it can, and the patience ends the rest.
            Some(Err(error)) => tracing::debug!(%error, "reading failed; the client tries again"),
            Some(Ok(message)) => {
                let found = ranges.iter().position(|range| {
                    range.partition == message.partition() && range.topic == message.topic()
                });
                let Some(index) = found else { continue };
                if message.offset() < ranges[index].end && !visit(&message)? {
                    return Ok(());
                }
                ranges[index].from = message.offset() + 1;
                if ranges[index].from >= ranges[index].end {
                    ranges.swap_remove(index);
                }
                heard = Instant::now();
            }
        }
    }
    Ok(())
}
