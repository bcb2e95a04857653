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
use crate::settle::{Command, Copy, Fenced, Mode, Plain, Shared};

/// How many settlements are written at once at most, and how many bytes of copies.
const BATCH: usize = 1024;
const BYTES: usize = 4 * 1024 * 1024;

/// Between attempts to give back what could not be settled.
const AGAIN: Duration = Duration::from_millis(500);

/// The task that settles.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// What could not be settled and is to be given back, and with which count.
    owed: Vec<Owed>,
}

type Owed = (Holding, u32);

/// Settlements by their source.
#[derive(Default)]
struct Batch {
    acks: BTreeMap<Source, Vec<Plain>>,
    backs: BTreeMap<Source, Vec<Plain>>,
    copies: BTreeMap<Source, Vec<(Holding, Box<Copy>, Confirmer)>>,
    renewals: Vec<(Vec<Holding>, Confirmer)>,
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
            let mut batch = Batch::default();
            for (holding, count) in self.owed.drain(..) {
                batch.backs.entry(holding.source).or_default().push((holding, count, None));
            }
            taken.drain(..).for_each(|command| batch.add(command));
            self.write(batch).await;
        }
    }

    async fn write(&mut self, batch: Batch) {
        let shared = &self.shared;
        // At once: they are about different entries.
        let (acks, backs, copies) = tokio::join!(
            join_all(batch.acks.into_iter().map(|(source, all)| settle(
                shared,
                Mode::Ack,
                source,
                all
            ))),
            join_all(batch.backs.into_iter().map(|(source, all)| settle(
                shared,
                Mode::Back,
                source,
                all
            ))),
            join_all(batch.copies.into_iter().map(|(source, all)| replace(shared, source, all))),
        );
        let given_back = !backs.is_empty();
        self.owed.extend(acks.into_iter().chain(backs).chain(copies).flatten());
        if shared.group.ordered {
            self.owed.iter().for_each(|(holding, _)| shared.held.shut(holding.source / 2));
        }
        if given_back {
            shared.claimable.notify_one();
        }
        for (holdings, confirmer) in batch.renewals {
            confirmer.confirm(shared.renew(holdings).await);
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
            Command::Ack(holding, confirmer) => {
                let plain = (holding, holding.count, Some(confirmer));
                self.acks.entry(holding.source).or_default().push(plain);
            }
            Command::Back(holding, count, confirmer) => {
                self.backs.entry(holding.source).or_default().push((holding, count, confirmer));
            }
            Command::Replace(holding, copy, confirmer) => {
                self.copies.entry(holding.source).or_default().push((holding, copy, confirmer));
            }
            Command::Renew(holdings, confirmer) => self.renewals.push((holdings, confirmer)),
            Command::Flush(done) => self.flushes.push(done),
        }
    }
}

/// Settles, and answers what is owed.
async fn settle(shared: &Shared, mode: Mode, source: Source, mut all: Vec<Plain>) -> Vec<Owed> {
    let settled = shared.settle(mode, source, &mut all).await;
    answer(shared, &settled, all.into_iter())
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
            bytes += copy.envelope.payload.len() + 1024;
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
    all: impl Iterator<Item = Plain>,
) -> Vec<Owed> {
    let gone = settled.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let mut owed = Vec::new();
    let mut done = Vec::new();
    for (index, (holding, count, confirmer)) in all.enumerate() {
        let result = match settled {
            Ok(fenced) if fenced.mine.get(index) == Some(&true) => Ok(()),
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
        let failed = matches!(settled, Err(error) if !gone && error.kind() != ErrorKind::Closed);
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
