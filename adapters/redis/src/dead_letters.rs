use std::sync::Arc;

use anybroker_core::{DeadLetter, DeadLetterFilter, ErrorKind, Hop, Peek, Redrive, Result, now};
use redis::Value;
use tokio::time::sleep;

use crate::error::error_of;
use crate::layout::Group;
use crate::link::{Call, Link};
use crate::message::{read, write};
use crate::scripts::{Found, REDRIVE, array};

/// Entries looked at in one step.
const PAGE: usize = 200;

/// The dead letters of a group.
pub(crate) struct DeadLetters<'a> {
    pub(crate) link: &'a Link,
    pub(crate) group: &'a Group,
}

impl DeadLetters<'_> {
    pub(crate) async fn peek(&self, filter: &DeadLetterFilter, limit: usize) -> Result<Peek> {
        let (mut peek, now) = (Peek { entries: Vec::new(), complete: true }, now());
        let mut from = "-".to_owned();
        let end = self.end().await?;
        loop {
            let page = self.page(&from, &end).await?;
            let Some((last, _)) = page.last() else { return Ok(peek) };
            from = format!("({last}");
            for (_, letter) in page {
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
        let mut from = "-".to_owned();
        loop {
            let page = self.page(&from, &end).await?;
            let Some((last, _)) = page.last() else { return Ok(sent) };
            from = format!("({last}");
            let mut meant = page
                .into_iter()
                .filter(|(_, letter)| {
                    redrive.selected().matches(&letter.envelope, &letter.hop, now)
                })
                .peekable();
            while meant.peek().is_some() {
                let rest = usize::try_from(redrive.at_most() - sent).unwrap_or(usize::MAX);
                let count = if redrive.interval().is_some() { rest.min(1) } else { rest };
                if count == 0 {
                    return Ok(sent);
                }
                let moved = self.send_back(meant.by_ref().take(count)).await?;
                sent += moved;
                if let Some(interval) = redrive.interval().filter(|_| moved > 0) {
                    sleep(interval).await;
                }
            }
        }
    }

    pub(crate) async fn purge(&self) -> Result<u64> {
        let (mut removed, end) = (0, self.end().await?);
        loop {
            let page = self.page("-", &end).await?;
            if page.is_empty() {
                return Ok(removed);
            }
            let ids: Vec<_> = page.iter().map(|(id, _)| id).collect();
            let mut command = redis::cmd("XDEL");
            command.arg(&self.group.dead_letters).arg(ids);
            removed += self.link.query::<u64>("purge", &command).await?;
        }
    }

    /// Each in one step, so that two who redrive at once send nothing twice.
    async fn send_back(&self, letters: impl Iterator<Item = (String, DeadLetter)>) -> Result<u64> {
        let mut calls: Vec<Option<Call<'_>>> = Vec::new();
        calls.resize_with(self.group.partitions.len(), || None);
        for (id, letter) in letters {
            let envelope = &letter.envelope;
            let partition = self.group.layout.partition(envelope.key.as_deref(), &envelope.id);
            let mut fields = Vec::new();
            write(envelope, &Hop::redrive(), |name, value| {
                fields.extend([name.to_vec(), value.to_vec()]);
            });
            let call = calls[partition].take().unwrap_or_else(|| {
                let retry = &self.group.partitions[partition].retry;
                Call::new(&REDRIVE).key(&self.group.dead_letters).key(retry)
            });
            calls[partition] = Some(call.arg(id).arg(fields.len()).arg(fields));
        }
        let mut sent = 0;
        for call in calls.into_iter().flatten() {
            sent += self.link.run::<u64>("redrive", &call).await?;
        }
        Ok(sent)
    }

    /// The id of the last one, or one that is before all.
    async fn end(&self) -> Result<String> {
        self.check().await?;
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.group.dead_letters).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Value = self.link.query("dead letters", &command).await?;
        let last = array(last).into_iter().find_map(Found::first);
        Ok(last.map_or_else(|| "0-0".to_owned(), |found| found.id))
    }

    async fn page(&self, from: &str, end: &str) -> Result<Vec<(String, DeadLetter)>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.group.dead_letters).arg(from).arg(end).arg("COUNT").arg(PAGE);
        let page: Value = self.link.query("dead letters", &command).await?;
        let default_type = self.group.layout.destination.name();
        let letter = |found: Found| {
            let (envelope, hop) = read(&found.id, found.fields, default_type);
            (found.id, DeadLetter { envelope: Arc::new(envelope), hop })
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
