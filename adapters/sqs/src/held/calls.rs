//! The calls about what is held: they renew, give back and delete.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Error, ErrorKind, Result};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, DeleteMessageBatchResultEntry};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{Delete, Entry, GiveBack, Held, Receipt, SETTLE, State, Then, ran_out};
use crate::answers::{Answers, hide, may_be_of_an_entry};
use crate::clients::CALL;
use crate::error::{error_of, failed};
use crate::lane::ENTRIES;

/// What a delete waits that was refused as one too many.
const SLOWED_DOWN: Duration = Duration::from_millis(500);

/// Calls at once that renew.
const CALLS: usize = 8;

impl Held {
    /// Renews what no handler can have yet.
    pub(crate) async fn renew_waiting(&self) {
        let waiting: Vec<_> = {
            let table = self.table();
            let waiting =
                |(tag, entry): (&u64, &Entry)| (entry.state == State::Waiting).then_some(*tag);
            table.entries.iter().filter_map(waiting).collect()
        };
        if let Err(error) = self.renew(&waiting).await {
            tracing::warn!(%error, waiting = waiting.len(), "leases were not renewed");
        }
    }

    /// Renews; what turns out to be gone is lost.
    pub(crate) async fn renew(&self, tags: &[u64]) -> Result<()> {
        let mut renewed = Ok(());
        let began = Instant::now();
        let all = {
            let table = self.table();
            let hide = |tag: &u64| {
                let entry = table.entries.get(tag);
                // To renew what goes back or ran out would hide it from the others.
                let entry = entry.filter(|entry| {
                    let goes_back = matches!(entry.state, State::Returning | State::Lost);
                    !table.closed && !goes_back && entry.deadline > began
                })?;
                Some((*tag, Arc::clone(&entry.receipt), self.visibility))
            };
            tags.iter().filter_map(hide).collect()
        };
        let mut followers = Vec::new();
        for (tag, result) in self.hide_all(all).await {
            let mut table = self.table();
            let Some(entry) = table.entries.get_mut(&tag) else { continue };
            match result {
                Ok(()) => entry.deadline = began + self.visibility,
                Err(error) if error.kind() == ErrorKind::StaleDelivery => {
                    if matches!(entry.state, State::Waiting | State::HandedOut) {
                        entry.state = State::Lost;
                        followers.extend(table.lose_followers(tag));
                    }
                }
                Err(error) => renewed = Err(error),
            }
        }
        let followers = followers.into_iter();
        let followers = followers.map(|(tag, receipt)| (tag, receipt, Duration::ZERO)).collect();
        for (tag, result) in self.hide_all(followers).await {
            if let Err(error) = result {
                tracing::debug!(%error, tag, "a delivery comes back when its lease runs out");
            }
        }
        renewed
    }

    /// Hides deliveries for so long from now. Those whose leases end at about the same time share a
    /// call: it ends with the first of its leases.
    pub(super) async fn hide_all(
        &self,
        mut hide: Vec<(u64, Receipt, Duration)>,
    ) -> Vec<(u64, Result<()>)> {
        let now = Instant::now();
        let deadline = |tag: u64| self.deadlines([tag].into_iter()).next().unwrap_or(now);
        hide.sort_by_cached_key(|(tag, ..)| deadline(*tag));
        let near = self.visibility / 3;
        let batches =
            hide.chunk_by(|(one, ..), (next, ..)| deadline(*next) - deadline(*one) < near);
        let batches = batches.flat_map(|batch| batch.chunks(ENTRIES)).map(|batch| async move {
            let until = self.earliest(batch.iter().map(|(tag, ..)| *tag));
            let hide = batch.iter().map(|(_, receipt, time)| (&**receipt, *time));
            let answers = self.hide(hide, until).await;
            batch.iter().map(|(tag, ..)| *tag).zip(answers).collect::<Vec<_>>()
        });
        stream::iter(batches.collect::<Vec<_>>()).buffer_unordered(CALLS).concat().await
    }

    /// One call, until then: later it would be about what somebody else may have.
    async fn hide(
        &self,
        batch: impl ExactSizeIterator<Item = (&str, Duration)>,
        until: Instant,
    ) -> Vec<Result<()>> {
        let count = batch.len();
        let hidden = hide(&self.topology, &self.queue, SETTLE, batch);
        let late = |_| (0..count).map(|_| Err(late())).collect();
        timeout_at(until, hidden).await.unwrap_or_else(late)
    }

    /// When the first of these leases runs out.
    fn earliest(&self, tags: impl Iterator<Item = u64>) -> Instant {
        self.deadlines(tags).min().unwrap_or_else(|| Instant::now() + CALL)
    }

    /// When the leases run out of what is held of these.
    fn deadlines(&self, tags: impl Iterator<Item = u64>) -> impl Iterator<Item = Instant> {
        let table = self.table();
        let entries = tags.filter_map(|tag| table.entries.get(&tag));
        entries.map(|entry| entry.deadline).collect::<Vec<_>>().into_iter()
    }

    /// One call that gives back.
    pub(crate) async fn give_back(self: Arc<Self>, batch: Vec<GiveBack>) {
        let until = self.earliest(batch.iter().map(|back| back.tag));
        let hide = batch.iter().map(|back| (&*back.receipt, back.after));
        let answers = self.hide(hide, until).await;
        for (back, answer) in batch.into_iter().zip(answers) {
            match back.then {
                Then::Nothing => {}
                Then::End => self.end(back.tag),
                Then::Confirm(confirmer) => {
                    self.end(back.tag);
                    confirmer.confirm(answer);
                }
            }
        }
    }

    /// One call that deletes; each delivery is let go of.
    pub(crate) async fn delete(self: Arc<Self>, batch: Vec<Delete>) {
        let mut deleted = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut stale = Vec::new();
        {
            let (table, now) = (self.table(), Instant::now());
            for Delete(tag, confirmer) in batch {
                // It may have waited for its turn past its lease.
                let entry = table.entries.get(&tag).filter(|entry| entry.deadline > now);
                let request = entry.and_then(|entry| {
                    DeleteMessageBatchRequestEntry::builder()
                        .id(deleted.len().to_string())
                        .receipt_handle(&*entry.receipt)
                        .build()
                        .ok()
                });
                match request {
                    Some(request) => {
                        entries.push(request);
                        deleted.push(Delete(tag, confirmer));
                    }
                    None => stale.push(Delete(tag, confirmer)),
                }
            }
        }
        for stale in stale {
            self.deleted(stale, Err(ran_out()));
        }
        if deleted.is_empty() {
            return;
        }
        let mut deleted: Vec<_> = deleted.into_iter().map(Some).collect();
        let delete = self.topology.clients.calls.delete_message_batch().queue_url(&*self.queue);
        let call = delete.set_entries(Some(entries)).send();
        let Some(called) = self.meanwhile(&mut deleted, call).await else { return };
        let mut answers = Answers::new(SETTLE, deleted.len());
        match called {
            Ok(sent) => {
                let refused = sent.failed().iter();
                answers.fill(
                    &self.queue,
                    sent.successful().iter().map(DeleteMessageBatchResultEntry::id),
                    refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
                );
            }
            Err(error) => {
                let error = failed(SETTLE, &self.queue, error);
                if may_be_of_an_entry(&error) && deleted.len() > 1 {
                    for alone in deleted.into_iter().flatten() {
                        Box::pin(Arc::clone(&self).delete(vec![alone])).await;
                    }
                    return;
                }
                answers.fail(&error);
            }
        }
        let mut again = Vec::new();
        for (deleted, answer) in deleted.into_iter().zip(answers.all) {
            // Answered already, when its lease ran out.
            let Some(Delete(tag, confirmer)) = deleted else { continue };
            if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Blocked) {
                again.push(Delete(tag, confirmer));
                continue;
            }
            self.deleted(Delete(tag, confirmer), answer);
        }
        if !again.is_empty() {
            // Slowed down; until the lease runs out there is time.
            sleep(SLOWED_DOWN).await;
            Box::pin(self.delete(again)).await;
        }
    }

    /// Waits for a call, and answers meanwhile what it is about as each lease runs out: the end of
    /// one lease says nothing about the others. `None` when it was the last one.
    async fn meanwhile<T>(
        &self,
        deletes: &mut [Option<Delete>],
        call: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(call);
        loop {
            let tags = deletes.iter().flatten().map(|Delete(tag, _)| *tag);
            let next = self.deadlines(tags).min()?;
            tokio::select! {
                called = &mut call => return Some(called),
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            for delete in deletes.iter_mut() {
                let ran_out = |Delete(tag, _): &mut Delete| {
                    self.deadlines([*tag].into_iter()).all(|deadline| deadline <= now)
                };
                if let Some(delete) = delete.take_if(ran_out) {
                    self.deleted(delete, Err(late()));
                }
            }
        }
    }

    /// Lets go of a delivery and answers its settlement.
    fn deleted(&self, Delete(tag, confirmer): Delete, answer: Result<()>) {
        if answer.is_err() {
            // It comes again: in order nothing may pass it. They come when their leases end.
            drop(self.lose_followers(tag));
        }
        self.end(tag);
        confirmer.confirm(answer);
    }
}

fn late() -> Error {
    error_of(ErrorKind::Timeout, SETTLE, "no answer before the lease ran out")
}
