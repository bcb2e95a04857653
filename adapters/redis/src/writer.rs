use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anybroker_core::{Confirmer, Error, ErrorKind, Result, RetryClass};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::error::{error_of, stale};
use crate::held::{Holding, Source};
use crate::settle::{Command, Copy, Fenced, Lot, Mode, Shared};

/// How many settlements are written at once at most, and how many bytes of copies.
const BATCH: usize = 1024;
const BYTES: usize = 4 * 1024 * 1024;

/// How many are worth a call while more are being handled, and how long to wait for them.
const WORTHWHILE: usize = 256;
const NAP: Duration = Duration::from_millis(1);

/// Between attempts to give back what could not be settled.
const AGAIN: Duration = Duration::from_millis(500);

/// The task that settles.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// What could not be settled and is to be given back, and with which count.
    owed: Vec<Owed>,
}

type Owed = (Holding, u32);

/// Settlements by what one call can make.
#[derive(Default)]
struct Batch {
    plain: BTreeMap<Lot, Vec<(Holding, Option<Confirmer>)>>,
    copies: BTreeMap<Source, Vec<(Holding, Box<Copy>, Confirmer)>>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, owed: Vec::new() }
    }

    pub(crate) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut taken = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                count = commands.recv_many(&mut taken, BATCH) => if count == 0 {
                    return;
                },
                () = sleep(AGAIN), if !self.owed.is_empty() => {}
            }
            if taken.len() < WORTHWHILE && self.shared.held.open() > 0 {
                // What was received together is about to be settled too: each call costs the server
                // a write to its disk.
                sleep(NAP).await;
                while taken.len() < BATCH
                    && let Ok(command) = commands.try_recv()
                {
                    taken.push(command);
                }
            }
            let mut batch = Batch::default();
            for (holding, count) in self.owed.drain(..) {
                batch.plain(holding, Mode::Back(count), None);
            }
            taken.drain(..).for_each(|command| batch.add(command));
            self.write(batch).await;
        }
    }

    async fn write(&mut self, batch: Batch) {
        let shared = &self.shared;
        // At once: they are about different entries.
        let given_back = batch.plain.keys().any(|lot| matches!(lot.mode, Mode::Back(_)));
        let (plain, copies) = tokio::join!(
            join_all(batch.plain.into_iter().map(|(lot, all)| settle(shared, lot, all))),
            join_all(batch.copies.into_iter().map(|(source, all)| replace(shared, source, all))),
        );
        self.owed.extend(plain.into_iter().chain(copies).flatten());
        if shared.group.ordered {
            self.owed.iter().for_each(|(holding, _)| shared.held.shut(holding.source / 2));
        }
        if given_back {
            shared.claimable.notify_one();
        }
        for done in batch.flushes {
            // Who asked may be gone.
            let _ = done.send(());
        }
    }
}

impl Batch {
    fn add(&mut self, command: Command) {
        match command {
            Command::Ack(holding, confirmer) => self.plain(holding, Mode::Ack, Some(confirmer)),
            Command::Back(holding, count, confirmer) => {
                self.plain(holding, Mode::Back(count), confirmer);
            }
            Command::Replace(holding, copy, confirmer) => {
                self.copies.entry(holding.source).or_default().push((holding, copy, confirmer));
            }
            Command::Flush(done) => self.flushes.push(done),
        }
    }

    fn plain(&mut self, holding: Holding, mode: Mode, confirmer: Option<Confirmer>) {
        self.plain.entry(holding.lot(mode)).or_default().push((holding, confirmer));
    }
}

/// Settles, and answers what is owed.
async fn settle(
    shared: &Shared,
    lot: Lot,
    mut all: Vec<(Holding, Option<Confirmer>)>,
) -> Vec<Owed> {
    all.sort_unstable_by_key(|(holding, _)| holding.id);
    let settled = shared.settle(lot, all.iter().map(|(holding, _)| holding.id)).await;
    let count = match lot.mode {
        Mode::Back(count) => count,
        Mode::Ack | Mode::Renew => lot.count,
    };
    let all = all.into_iter().map(|(holding, confirmer)| (holding, count, confirmer));
    answer(shared, &settled, all)
}

/// As [`settle`], by copies.
async fn replace(
    shared: &Shared,
    source: Source,
    mut all: Vec<(Holding, Box<Copy>, Confirmer)>,
) -> Vec<Owed> {
    let mut owed = Vec::new();
    while !all.is_empty() {
        let mut bytes = 0;
        let fits = all.iter().position(|(_, copy, _)| {
            bytes += copy.size();
            bytes > BYTES
        });
        let rest = all.split_off(fits.map_or(all.len(), |fits| fits.max(1)));
        let settled = shared.replace(source, &all).await;
        let confirmed = all
            .into_iter()
            .map(|(holding, _, confirmer)| (holding, holding.count, Some(confirmer)));
        owed.extend(answer(shared, &settled, confirmed));
        all = rest;
    }
    owed
}

fn answer(
    shared: &Shared,
    settled: &Result<Fenced>,
    all: impl Iterator<Item = (Holding, u32, Option<Confirmer>)>,
) -> Vec<Owed> {
    let gone = settled.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let mut owed = Vec::new();
    let mut done = Vec::new();
    for (index, (holding, count, confirmer)) in all.enumerate() {
        let refused = settled.as_ref().ok().and_then(|fenced| fenced.refusal(index));
        let is_refused = refused.is_some();
        let result = match settled {
            Ok(fenced) if fenced.is_mine(index) => refused.map_or(Ok(()), Err),
            Ok(fenced) if fenced.again => {
                let text = "the connection was lost before the answer came";
                let error = error_of(ErrorKind::Unavailable, "settle", text);
                Err(error.class(RetryClass::Ambiguous))
            }
            Ok(_) => Err(stale("somebody else has taken it over: its lease ran out")),
            Err(_) if gone => Err(stale("the group is gone, and what it had in flight with it")),
            Err(error) if error.kind() == ErrorKind::Closed => {
                Err(stale("the broker was closed: the message comes again"))
            }
            Err(error) => Err(same(error)),
        };
        // Nothing to give back on a connection that was closed for good.
        let failed = is_refused
            || matches!(settled, Err(error) if !gone && error.kind() != ErrorKind::Closed);
        if failed {
            owed.push((holding, count));
        } else {
            done.push(holding.tag);
        }
        if let Some(confirmer) = confirmer {
            confirmer.confirm(result);
        }
    }
    shared.settled.store(true, Ordering::Relaxed);
    if shared.held.remove(done) {
        // The next suspect may come.
        shared.claimable.notify_one();
    }
    owed
}

/// The same error, for one of many that it struck.
fn same(error: &Error) -> Error {
    let text = error.to_string();
    let text = text.strip_prefix("redis: settle: ").unwrap_or(&text).to_owned();
    error_of(error.kind(), "settle", text).class(error.retry_class())
}
