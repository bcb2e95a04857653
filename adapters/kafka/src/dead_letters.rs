//! The dead-letter topic: looked at, sent back, emptied. All of this blocks.
//!
//! A log lets nothing go out of its middle. So what is sent back is marked: one transaction stores
//! the copies for the group and a record in the dead-letter topic that names their places. Marked
//! letters count as gone; what lies before the first that is left is deleted.
//!
//! Whoever may write to the topic could write such a record too, or bring one over from another
//! topic. So a place is the letter's offset and the broker's time of storing it, and a record with
//! one that does not fit what is there marks nothing: it is a letter itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    DeadLetter, DeadLetterFilter, Envelope, ErrorKind, Hop, Peek, Redrive, Result, now,
};
use rdkafka::Message;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::ask::{ANSWER, patiently};
use crate::client::Context;
use crate::error::{code, error_of, failed};
use crate::isolation::is_of_a_record;
use crate::limits::COPIES;
use crate::message::{headers, read};
use crate::names::Names;
use crate::publish::batch_size;
use crate::scan::{Range, scan};
use crate::topology::Topology;

/// The header of a mark: the places of letters that were sent back, each `offset@time`, joined by
/// commas.
const MARK: &str = "abremoved";

/// How many letters are sent back in one transaction.
const LOT: usize = 500;

/// How often a redrive begins anew because another one had come between.
const ATTEMPTS: u32 = 12;

/// After how many letters that are refused a redrive ends: it begins anew for each.
const REFUSED: usize = 100;

/// What a group gave up.
pub(crate) struct DeadLetters {
    pub(crate) topology: Arc<Topology>,
    pub(crate) names: Arc<Names>,
    pub(crate) default_type: String,
    /// To wait for the admin client where it only answers futures.
    pub(crate) runtime: Handle,
}

struct Letter {
    place: Place,
    envelope: Envelope,
    hop: Hop,
}

/// Where a letter is: its offset, and when the broker stored it, in milliseconds since 1970.
type Place = (i64, i64);

fn place(message: &impl Message) -> Place {
    (message.offset(), message.timestamp().to_millis().unwrap_or_default())
}

impl DeadLetters {
    /// The first and the last offset of the topic, which has one partition.
    fn whole(&self) -> Result<Range> {
        let topic = self.names.dead_letters.clone();
        let ask = || self.topology.reader().fetch_watermarks(&topic, 0, ANSWER);
        let asked = patiently(&self.topology.clients.cluster, ask);
        let (from, end) = asked.map_err(|error| self.failed("looking at", error))?;
        Ok(Range { topic, partition: 0, from, end })
    }

    fn failed(&self, what: &str, error: KafkaError) -> anybroker_core::Error {
        failed("dead letters", &format!("{what} topic {:?}", self.names.dead_letters), error)
    }

    /// Which letters were sent back.
    fn marked(&self, range: &Range) -> Result<BTreeSet<i64>> {
        let mut marked = BTreeSet::new();
        // In the order of their offsets, as they come.
        let mut letters: Vec<Place> = Vec::new();
        let is_there = |letters: &[Place], (offset, time): Place| {
            let found = letters.binary_search_by_key(&offset, |letter| letter.0);
            offset < range.from || found.is_ok_and(|index| letters[index].1 == time)
        };
        scan(&self.topology.clients, &self.names.group, vec![range.clone()], |message| {
            let places = mark_of(message);
            match places.filter(|all| all.iter().all(|place| is_there(&letters, *place))) {
                Some(places) => {
                    // A mark itself is no letter either.
                    marked.insert(message.offset());
                    marked.extend(places.into_iter().map(|(offset, _)| offset));
                }
                None => letters.push(place(message)),
            }
            Ok(true)
        })?;
        Ok(marked)
    }

    /// Visits the letters that are left, the oldest first.
    fn each(
        &self,
        range: &Range,
        marked: &BTreeSet<i64>,
        mut visit: impl FnMut(Letter) -> Result<bool>,
    ) -> Result<()> {
        scan(&self.topology.clients, &self.names.group, vec![range.clone()], |message| {
            if marked.contains(&message.offset()) {
                return Ok(true);
            }
            let (envelope, hop) = read(message, &self.default_type);
            visit(Letter { place: place(message), envelope, hop: *hop.unwrap_or_default() })
        })
    }

    pub(crate) fn peek(&self, filter: &DeadLetterFilter, limit: usize) -> Result<Peek> {
        let range = self.whole()?;
        let marked = self.marked(&range)?;
        let mut peek = Peek { entries: Vec::new(), complete: true };
        self.each(&range, &marked, |letter| {
            if !filter.matches(&letter.envelope, &letter.hop, now()) {
                return Ok(true);
            }
            if peek.entries.len() == limit {
                peek.complete = false;
                return Ok(false);
            }
            let envelope = Arc::new(letter.envelope);
            peek.entries.push(DeadLetter { envelope, hop: letter.hop });
            Ok(true)
        })?;
        Ok(peek)
    }

    /// How many there are: counted up to some thousands, an upper bound beyond.
    pub(crate) fn count(&self) -> Result<u64> {
        const COUNTED: i64 = 10_000;
        let range = self.whole()?;
        let most = range.end - range.from;
        if most > COUNTED {
            return Ok(most.unsigned_abs());
        }
        let marked = self.marked(&range)?;
        let mut count = 0;
        self.each(&range, &marked, |_| {
            count += 1;
            Ok(true)
        })?;
        Ok(count)
    }

    /// Sends letters back to the group's own retry topic.
    pub(crate) fn redrive(&self, redrive: &Redrive) -> Result<u64> {
        let mut progress = Progress::default();
        let mut fenced = 0;
        while fenced < ATTEMPTS {
            match self.redrive_once(redrive, &mut progress) {
                // Another redrive has begun since, and this one's transaction is void.
                Err(Stopped::Fenced) => {
                    let noise = now().elapsed().unwrap_or_default().subsec_nanos() % 97;
                    let pause = 40 << fenced.min(6);
                    std::thread::sleep(Duration::from_millis(pause + u64::from(noise)));
                    fenced += 1;
                }
                // Of the lot, one letter or all: from here on each is sent by itself. The refusal
                // has cost the producer its numbers, so another one begins anew.
                Err(Stopped::Refused(lot, error)) => {
                    progress.alone = true;
                    if let [offset] = lot[..] {
                        tracing::warn!(%error, topic = self.names.retry, offset, "a dead letter stays: it is refused");
                        progress.refused.insert(offset);
                        progress.refusal = Some(error);
                    }
                    if progress.refused.len() >= REFUSED {
                        break;
                    }
                }
                Err(Stopped::Failed(error)) => return Err(error),
                Ok(first_left) => {
                    self.trim(first_left);
                    return match progress.refusal {
                        None => Ok(progress.sent),
                        Some(refusal) => Err(self.left_behind(progress.sent, refusal)),
                    };
                }
            }
        }
        if let Some(refusal) = progress.refusal {
            return Err(self.left_behind(progress.sent, refusal));
        }
        let text = "other redrives of the same group come between again and again: try later";
        Err(error_of(ErrorKind::Blocked, "redrive", text))
    }

    /// The error that says that the others were sent back.
    fn left_behind(&self, sent: u64, refusal: KafkaError) -> anybroker_core::Error {
        let what = format!(
            "{sent} letters were sent back, and others stay, since topic {:?} refuses them",
            self.names.retry
        );
        failed("redrive", &what, refusal)
    }

    /// Whoever begins later fences this one off, so that no two send the same letter.
    fn redrive_once(&self, redrive: &Redrive, progress: &mut Progress) -> Result<i64, Stopped> {
        let clients = &self.topology.clients;
        let batch = batch_size(clients.settings.server.max_payload);
        let options = [
            ("message.max.bytes", COPIES),
            ("batch.size", &*batch),
            ("transactional.id", &*self.names.dead_letters),
            // A lot takes some milliseconds; and until the broker gives up one whose process was
            // killed, nobody reads the group's retries that were stored after it.
            ("transaction.timeout.ms", "10000"),
            ("partitioner", "murmur2_random"),
        ];
        let producer = clients.transactor(&options)?;
        producer.init_transactions(ANSWER)?;
        // Read only now: nobody before changes anything any more.
        let range = self.whole()?;
        let marked = self.marked(&range)?;
        let (mut seen, mut first_left) = (range.from, None);
        let mut lot: Vec<Letter> = Vec::new();
        let interval = redrive.interval();
        let most = if interval.is_some() || progress.alone { 1 } else { LOT };
        let mut stopped = None;
        self.each(&range, &marked, |letter| {
            seen = letter.place.0 + 1;
            let chosen = redrive.selected().matches(&letter.envelope, &letter.hop, now())
                && !progress.refused.contains(&letter.place.0);
            let room = redrive.at_most() - progress.sent > lot.len() as u64;
            if !chosen || !room {
                first_left.get_or_insert(letter.place.0);
                return Ok(room);
            }
            lot.push(letter);
            if lot.len() < most {
                return Ok(true);
            }
            if let Some(interval) = interval
                && progress.sent > 0
            {
                std::thread::sleep(interval);
            }
            match self.send_back(&producer, &mut lot) {
                Ok(count) => progress.sent += count,
                Err(error) => stopped = Some(error),
            }
            Ok(stopped.is_none())
        })?;
        if let Some(stopped) = stopped {
            return Err(stopped);
        }
        progress.sent += self.send_back(&producer, &mut lot)?;
        // What was not looked at may be a letter.
        Ok(first_left.unwrap_or(seen))
    }

    /// Stores the copies and their mark, all or nothing.
    fn send_back(
        &self,
        producer: &BaseProducer<Context>,
        lot: &mut Vec<Letter>,
    ) -> Result<u64, Stopped> {
        if lot.is_empty() {
            return Ok(0);
        }
        drop(producer.context().take_refusal());
        producer.begin_transaction()?;
        let name = |Letter { place: (offset, time), .. }: &Letter| format!("{offset}@{time}");
        let places = lot.iter().map(name).collect::<Vec<_>>().join(",");
        let written = lot.iter().try_for_each(|letter| {
            let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&self.names.retry)
                .payload(&*letter.envelope.payload)
                .headers(headers(&letter.envelope, &Hop::redrive()));
            let record = match &letter.envelope.key {
                Some(key) => record.key(&**key),
                None => record,
            };
            producer.send(record).map_err(|(error, _)| error)?;
            producer.poll(Duration::ZERO);
            Ok(())
        });
        let marked = written.and_then(|()| {
            let header = Header { key: MARK, value: Some(&*places) };
            let mark: BaseRecord<'_, str, [u8]> = BaseRecord::to(&self.names.dead_letters)
                .payload(&[][..])
                .headers(OwnedHeaders::new_with_capacity(1).insert(header));
            producer.send(mark).map_err(|(error, _)| error)
        });
        let committed = marked.and_then(|()| producer.commit_transaction(ANSWER));
        if let Err(error) = committed {
            // Whether or not this is answered, without a commit it did not happen.
            let _ = producer.abort_transaction(ANSWER);
            let reported = producer.context().take_refusal();
            if let Some(refusal) = reported.into_iter().chain([error.clone()]).find(is_of_a_record)
            {
                let offsets = lot.iter().map(|letter| letter.place.0).collect();
                return Err(Stopped::Refused(offsets, refusal));
            }
            return Err(error.into());
        }
        Ok(lot.drain(..).len() as u64)
    }

    pub(crate) fn purge(&self) -> Result<u64> {
        let range = self.whole()?;
        let marked = self.marked(&range)?;
        let mut removed = 0;
        self.each(&range, &marked, |_| {
            removed += 1;
            Ok(true)
        })?;
        if range.from < range.end {
            self.delete_before(range.end)?;
        }
        Ok(removed)
    }

    /// Deletes what is no letter any more.
    fn trim(&self, before: i64) {
        if let Err(error) = self.delete_before(before) {
            // It is marked: that it still takes place harms nobody.
            tracing::debug!(%error, topic = self.names.dead_letters, "old letters stay");
        }
    }

    fn delete_before(&self, offset: i64) -> Result<()> {
        let failed = |error| self.failed("emptying", error);
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(offset);
        list.add_partition_offset(&self.names.dead_letters, 0, offset).map_err(failed)?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let admin = self.topology.admin("purge")?;
        let deleted = self.runtime.block_on(admin.delete_records(&list, &options));
        let given_up = |error: &KafkaError| self.topology.give_up(&admin, error);
        let deleted = deleted.inspect_err(given_up).map_err(failed)?;
        deleted.elements().iter().try_for_each(TopicPartitionListElem::error).map_err(failed)
    }
}

/// The places that a record names, if it looks like a mark.
fn mark_of(message: &impl Message) -> Option<Vec<Place>> {
    let headers = message.headers().filter(|headers| headers.count() == 1)?;
    let header = headers.iter().find(|header| header.key == MARK)?;
    if message.key().is_some() || !message.payload().unwrap_or_default().is_empty() {
        return None;
    }
    let text = std::str::from_utf8(header.value?).ok()?;
    text.split(',').map(place_of).collect()
}

fn place_of(text: &str) -> Option<Place> {
    let (offset, time) = text.split_once('@')?;
    Some((offset.parse().ok()?, time.parse().ok()?))
}

/// What a redrive has done, however often it begins anew.
#[derive(Default)]
struct Progress {
    sent: u64,
    /// Whether each letter goes in a transaction of its own.
    alone: bool,
    /// The letters that the retry topic does not take, and why the last of them is refused.
    refused: BTreeSet<i64>,
    refusal: Option<KafkaError>,
}

/// Why a redrive ended early.
enum Stopped {
    /// Another one has begun.
    Fenced,
    /// One of the letters with these offsets is refused, whatever comes with it.
    Refused(Vec<i64>, KafkaError),
    Failed(anybroker_core::Error),
}

impl From<anybroker_core::Error> for Stopped {
    fn from(error: anybroker_core::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<KafkaError> for Stopped {
    fn from(error: KafkaError) -> Self {
        match code(&error) {
            Some(
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::InvalidProducerIdMapping
                // The broker says no more where two redrives meet at the end of a transaction. To
                // begin anew is safe whether or not it was committed: the marks are read again.
                | RDKafkaErrorCode::Unknown,
            ) => Self::Fenced,
            _ => Self::Failed(failed("redrive", "sending letters back", error)),
        }
    }
}
