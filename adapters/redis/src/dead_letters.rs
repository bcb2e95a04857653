use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    DeadLetter, DeadLetterFilter, Error, ErrorKind, Hop, Peek, Redrive, Result, RetryClass, now,
};
use redis::Value;
use tokio::time::sleep;

use crate::error::{error_of, refused};
use crate::layout::Group;
use crate::link::{Call, Link};
use crate::message::{Entry, read, write};
use crate::scripts::{Found, REDRIVE, array};

/// The most entries and bytes looked at in one step, and the bytes sent back in one.
const PAGE: usize = 200;
const PAGE_BYTES: usize = 8 * 1024 * 1024;
const SENT_BYTES: usize = 4 * 1024 * 1024;

/// A dead letter and where it is stored.
struct Stored {
    id: String,
    letter: DeadLetter,
    size: usize,
    /// Whether it is too large for a message, and was not decoded whole.
    is_cut: bool,
}

type Page = Vec<Stored>;

/// How many the next page may have, of those like these. The first has one, and tells.
fn fitting(page: &Page) -> usize {
    let bytes: usize = page.iter().map(|stored| stored.size).sum();
    (PAGE_BYTES / (bytes / page.len().max(1)).max(1)).clamp(1, PAGE)
}

/// What keeps a dead letter from being sent back.
fn still_too_large(size: usize, most: usize) -> Error {
    let text = format!(
        "some dead letters are larger than max-payload, the first with {size} bytes where it is \
         {most}, and stay; raise it and send them again"
    );
    error_of(ErrorKind::TooLarge, "redrive", text)
}

/// The dead letters of a group.
pub(crate) struct DeadLetters<'a> {
    pub(crate) link: &'a Link,
    pub(crate) group: &'a Group,
    /// The largest message.
    pub(crate) most: usize,
}

impl DeadLetters<'_> {
    pub(crate) async fn peek(&self, filter: &DeadLetterFilter, limit: usize) -> Result<Peek> {
        let (mut peek, now) = (Peek { entries: Vec::new(), complete: true }, now());
        let (mut from, mut count) = ("-".to_owned(), 1);
        let end = self.end().await?;
        loop {
            let page = self.page(&from, &end, count).await?;
            let Some(Stored { id: last, .. }) = page.last() else { return Ok(peek) };
            count = fitting(&page);
            from = format!("({last}");
            for Stored { letter, .. } in page {
                if filter.matches(&letter.envelope, &letter.hop, now) {
                    if peek.entries.len() == limit {
                        peek.complete = false;
                        return Ok(peek);
                    }
                    peek.entries.push(letter);
                }
            }
        }
    }

    /// Sends back what is there now: what is given up again meanwhile is not sent once more.
    pub(crate) async fn redrive(&self, redrive: &Redrive) -> Result<u64> {
        let (mut sent, now, end) = (0, now(), self.end().await?);
        let mut refusal = None;
        let (mut from, mut count) = ("-".to_owned(), 1);
        loop {
            let page = self.page(&from, &end, count).await?;
            let Some(Stored { id: last, .. }) = page.last() else { break };
            count = fitting(&page);
            from = format!("({last}");
            let mut meant = page
                .into_iter()
                .filter(|Stored { letter, .. }| {
                    redrive.selected().matches(&letter.envelope, &letter.hop, now)
                })
                .filter(|stored| {
                    if stored.is_cut {
                        refusal.get_or_insert_with(|| still_too_large(stored.size, self.most));
                    }
                    !stored.is_cut
                })
                .collect::<Vec<_>>()
                .into_iter()
                .peekable();
            while meant.peek().is_some() {
                let rest = usize::try_from(redrive.at_most() - sent).unwrap_or(usize::MAX);
                let most = if redrive.interval().is_some() { rest.min(1) } else { rest };
                if most == 0 {
                    return refusal.map_or(Ok(sent), Err);
                }
                let moved = self.send_back(meant.by_ref().take(most), &mut refusal).await?;
                sent += moved;
                if let Some(interval) = redrive.interval().filter(|_| moved > 0) {
                    sleep(interval).await;
                }
            }
        }
        refusal.map_or(Ok(sent), Err)
    }

    pub(crate) async fn purge(&self) -> Result<u64> {
        let (mut removed, mut count, end) = (0, 1, self.end().await?);
        loop {
            let page = self.page("-", &end, count).await?;
            count = fitting(&page);
            if page.is_empty() {
                return Ok(removed);
            }
            let ids: Vec<_> = page.iter().map(|stored| &stored.id).collect();
            let mut command = redis::cmd("XDEL");
            command.arg(&self.group.dead_letters).arg(ids);
            removed += self.link.query::<u64>("purge", &command).await?;
        }
    }

    /// Each in one step, so that two who redrive at once send nothing twice.
    /// What is refused for good stays, and the first error of it is noted; the others are sent.
    async fn send_back(
        &self,
        letters: impl Iterator<Item = Stored>,
        refusal: &mut Option<Error>,
    ) -> Result<u64> {
        let (mut letters, mut sent) = (letters.peekable(), 0);
        while letters.peek().is_some() {
            let mut calls: Vec<Option<Call<'_>>> = Vec::new();
            calls.resize_with(self.group.partitions.len(), || None);
            let mut bytes = 0;
            while bytes < SENT_BYTES
                && let Some(Stored { id, letter, size, .. }) = letters.next()
            {
                let envelope = &letter.envelope;
                bytes += size;
                let partition = self.group.layout.partition(envelope.key.as_deref(), &envelope.id);
                let mut fields = Vec::new();
                write(envelope, &Hop::redrive(), Duration::ZERO, |name, value| {
                    fields.extend([name.to_vec(), value.to_vec()]);
                });
                let call = calls[partition].take().unwrap_or_else(|| {
                    let retry = &self.group.partitions[partition].retry;
                    Call::new(&REDRIVE).key(&self.group.dead_letters).key(retry)
                });
                calls[partition] = Some(call.arg(id).arg(fields.len()).arg(fields));
            }
            for call in calls.into_iter().flatten() {
                let (moved, text): (u64, String) = self.link.run("redrive", &call).await?;
                sent += moved;
                if !text.is_empty() {
                    let what = "some dead letters were refused and stay; the others were sent back";
                    let error = refused("redrive", what, text);
                    if error.retry_class() != RetryClass::Permanent {
                        return Err(error);
                    }
                    refusal.get_or_insert(error);
                }
            }
        }
        Ok(sent)
    }

    /// The id of the last one, or one that is before all.
    async fn end(&self) -> Result<String> {
        self.check().await?;
        self.link.learn_time().await?;
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.group.dead_letters).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Value = self.link.query("dead letters", &command).await?;
        let last = array(last).into_iter().find_map(Found::first);
        Ok(last.map_or_else(|| "0-0".to_owned(), |found| found.id))
    }

    async fn page(&self, from: &str, end: &str, count: usize) -> Result<Page> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.group.dead_letters).arg(from).arg(end).arg("COUNT").arg(count);
        let page: Value = self.link.query("dead letters", &command).await?;
        let default_type = self.group.layout.destination.name();
        let letter = |found: Found| {
            let Entry { envelope, hop, size, is_cut, .. } =
                read(&found.id, found.fields, default_type, &self.link.clock, self.most);
            let letter = DeadLetter { envelope: Arc::new(envelope), hop: *hop.unwrap_or_default() };
            Stored { id: found.id, letter, size, is_cut }
        };
        Ok(array(page).into_iter().filter_map(Found::first).map(letter).collect())
    }

    /// # Errors
    /// `NotFound` where there is no such group.
    async fn check(&self) -> Result<()> {
        let stream = &self.group.partitions[0].retry;
        let exists: bool =
            self.link.query("dead letters", redis::cmd("EXISTS").arg(stream)).await?;
        if exists {
            return Ok(());
        }
        let text = format!("group {:?} does not exist; declare the subscription", self.group.name);
        Err(error_of(ErrorKind::NotFound, "dead letters", text))
    }
}
