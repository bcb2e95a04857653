use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{
    Confirmation, Confirmer, Delivery, Envelope, Error, ErrorKind, Hop, Outcome, Result,
    RetryClass, Settler, Subscription,
};
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::error::{error_of, stale};
use crate::held::{Held, Holding, Source};
use crate::layout::Group;
use crate::link::{Call, Link, pause};
use crate::message::write;
use crate::scripts::{REPLACE, SETTLE};

/// How many settlements are written at once at most, and how many bytes of copies.
const BATCH: usize = 1024;
const BYTES: usize = 4 * 1024 * 1024;

/// Between attempts to give back what could not be settled.
const AGAIN: Duration = Duration::from_millis(500);

/// What the parts of a consumer share.
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) group: Arc<Group>,
    pub(crate) subscription: Subscription,
    /// Its name, which nobody else has.
    pub(crate) consumer: String,
    pub(crate) held: Held,
    /// Something may be claimed at once.
    pub(crate) claimable: Notify,
    /// Whether there may be something to trim.
    pub(crate) settled: AtomicBool,
    /// There is room again.
    pub(crate) room: Notify,
    /// With which it owns each ordered partition; empty where it does not.
    tokens: Mutex<Vec<String>>,
}

/// Settles the deliveries of one consumer.
pub(crate) struct RedisSettler {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Ack(Holding, Confirmer),
    /// Back to the group, to be delivered with this count and one more.
    Back(Holding, u32, Option<Confirmer>),
    Replace(Holding, Box<Copy>, Confirmer),
    Renew(Vec<Holding>, Confirmer),
    /// Answers when everything before it is done.
    Flush(oneshot::Sender<()>),
}

/// What takes the place of a delivery.
struct Copy {
    place: &'static str,
    delay: Duration,
    envelope: Arc<Envelope>,
    hop: Hop,
}

#[derive(Clone, Copy)]
enum Mode {
    Ack,
    Renew,
    Back,
}

impl Shared {
    pub(crate) fn new(
        link: Arc<Link>,
        group: Arc<Group>,
        subscription: Subscription,
        consumer: String,
    ) -> Self {
        let tokens = Mutex::new(vec![String::new(); group.partitions.len()]);
        Self {
            link,
            group,
            subscription,
            consumer,
            held: Held::default(),
            claimable: Notify::new(),
            settled: AtomicBool::new(true),
            room: Notify::new(),
            tokens,
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.subscription.lease_time()
    }

    pub(crate) fn token(&self, partition: usize) -> String {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)[partition].clone()
    }

    pub(crate) fn set_token(&self, partition: usize, token: String) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)[partition] = token;
    }

    /// Begins a call of a script for one source: stream, lock, more keys; group, consumer, token.
    pub(crate) fn call(
        &self,
        script: &'static redis::Script,
        source: Source,
        keys: &[&str],
    ) -> Call<'static> {
        let lock = &self.group.partitions[source / 2].lock;
        let mut call = Call::new(script).key(self.group.stream(source)).key(lock);
        for key in keys {
            call = call.key(key);
        }
        call.arg(&self.group.name).arg(&self.consumer).arg(self.token(source / 2))
    }

    /// Settles holdings of one source; answers for each whether it was still this consumer's.
    async fn settle(
        &self,
        mode: Mode,
        source: Source,
        holdings: &mut [(Holding, u32, Option<Confirmer>)],
    ) -> Result<Fenced> {
        holdings.sort_unstable_by_key(|(holding, ..)| holding.id);
        let mut call = self.call(&SETTLE, source, &[]).arg(match mode {
            Mode::Ack => "ack",
            Mode::Renew => "renew",
            Mode::Back => "back",
        });
        for (holding, count, _) in holdings {
            call = call.arg(holding.id.to_string()).arg(holding.count).arg(*count);
        }
        self.fenced(&call).await
    }

    /// Runs a fenced script, and again when the connection was lost before the answer came: that
    /// is safe, and only leaves it open whether it was the first time that it took effect.
    async fn fenced(&self, call: &Call<'_>) -> Result<Fenced> {
        let end = Instant::now() + self.lease();
        let mut attempt = 0;
        loop {
            match self.link.run::<String>("settle", call).await {
                Ok(digits) => {
                    let mine = digits.bytes().map(|digit| digit == b'1').collect();
                    return Ok(Fenced { mine, again: attempt > 0 });
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                    attempt += 1;
                    pause(attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews at once; what is somebody else's by now is forgotten.
    pub(crate) async fn renew(&self, holdings: Vec<Holding>) -> Result<()> {
        let mut sources = BTreeMap::<_, Vec<_>>::new();
        for holding in holdings {
            sources.entry(holding.source).or_default().push((holding, 0, None));
        }
        for (source, mut holdings) in sources {
            let Fenced { mine, .. } = self.settle(Mode::Renew, source, &mut holdings).await?;
            let tags = |kept: bool| {
                let tagged = holdings.iter().zip(&mine).filter(move |(_, mine)| **mine == kept);
                tagged.map(|((holding, ..), _)| holding.tag).collect::<Vec<_>>()
            };
            self.held.renewed(tags(true), self.lease());
            self.held.remove(tags(false));
        }
        Ok(())
    }

    async fn replace(
        &self,
        source: Source,
        copies: &[(Holding, Box<Copy>, Confirmer)],
    ) -> Result<Fenced> {
        let partition = &self.group.partitions[source / 2];
        let keys = [&*partition.retry, &partition.delayed, &self.group.dead_letters];
        let mut call = self.call(&REPLACE, source, &keys);
        for (holding, copy, _) in copies {
            let mut fields = Vec::new();
            write(&copy.envelope, &copy.hop, |name, value| {
                fields.extend([name.to_vec(), value.to_vec()]);
            });
            call = call
                .arg(holding.id.to_string())
                .arg(holding.count)
                .arg(copy.place)
                .arg(millis(copy.delay))
                .arg(copy.hop.id.as_deref())
                .arg(fields.len())
                .arg(fields);
        }
        self.fenced(&call).await
    }
}

/// In whole milliseconds, never less than it says.
pub(crate) fn millis(delay: Duration) -> u64 {
    // A century: the server counts in doubles.
    const LONGEST: u64 = 100 * 366 * 24 * 3_600_000;
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).min(LONGEST)
}

/// What a fenced script answered.
struct Fenced {
    /// For each entry, whether it was still this consumer's.
    mine: Vec<bool>,
    /// Whether an earlier answer was lost: then what is not this consumer's may be so since it was
    /// settled.
    again: bool,
}

impl RedisSettler {
    pub(crate) fn start(shared: Arc<Shared>) -> Arc<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Writer { shared: Arc::clone(&shared), owed: Vec::new() }.run(receiver));
        Arc::new(Self { shared, commands })
    }

    /// Resolves when what was settled so far is with the server, as far as it can be.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = flushed.await;
        }
    }

    pub(crate) fn give_back(&self, holding: Holding, seen: bool) -> Confirmation {
        let count = if seen { holding.count } else { holding.count.saturating_sub(1) };
        self.send(|confirmer| Command::Back(holding, count, Some(confirmer)))
    }

    fn send(&self, command: impl FnOnce(Confirmer) -> Command) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        // The writer ends after the last settler. If it is gone, so is the runtime, and the
        // confirmer with the command, which says that nothing is known.
        let _ = self.commands.send(command(confirmer));
        self.shared.room.notify_one();
        confirmation
    }
}

impl Settler for RedisSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let shared = &self.shared;
        let ordered = shared.group.ordered;
        let returns = matches!(outcome, Outcome::Retry { .. } | Outcome::Release { .. });
        let Some(holding) = shared.held.settle(delivery.tag(), ordered && returns) else {
            let text = "its lease ran out, or the broker was closed: the message comes again";
            return Confirmation::ready(Err(stale(text)));
        };
        let (place, delay, hop) = match outcome {
            Outcome::Ack => return self.send(|confirmer| Command::Ack(holding, confirmer)),
            // In order, it keeps its place.
            Outcome::Retry { .. } if ordered => return self.give_back(holding, true),
            Outcome::Release { after } if ordered || after.is_zero() => {
                return self.give_back(holding, false);
            }
            Outcome::Retry { after } if after.is_zero() => {
                ("retry", after, Hop::retry(&delivery, after))
            }
            Outcome::Retry { after } => ("delayed", after, Hop::retry(&delivery, after)),
            Outcome::Release { after } => ("delayed", after, Hop::release(&delivery, after)),
            Outcome::DeadLetter { reason } => {
                let hop = Hop::dead_letter(&delivery, &reason, &shared.subscription);
                ("dead", Duration::ZERO, hop)
            }
        };
        let envelope = Arc::clone(delivery.envelope());
        let copy = Box::new(Copy { place, delay, envelope, hop });
        self.send(|confirmer| Command::Replace(holding, copy, confirmer))
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let holdings = self.shared.held.out(tags);
        self.send(|confirmer| Command::Renew(holdings, confirmer))
    }

    fn abandon(&self, tag: u64) {
        if let Some(holding) = self.shared.held.abandon(tag, self.shared.group.ordered) {
            drop(self.give_back(holding, true));
        }
    }

    fn is_lost(&self, tag: u64) -> bool {
        self.shared.held.is_lost(tag)
    }
}

impl fmt::Debug for RedisSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettler")
            .field("subscription", &self.shared.subscription)
            .field("consumer", &self.shared.consumer)
            .finish_non_exhaustive()
    }
}

/// The task that settles.
struct Writer {
    shared: Arc<Shared>,
    /// What could not be settled and is to be given back.
    owed: Vec<Holding>,
}

type Plain = (Holding, u32, Option<Confirmer>);

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
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut taken = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                count = commands.recv_many(&mut taken, BATCH) => if count == 0 {
                    return;
                },
                () = sleep(AGAIN), if !self.owed.is_empty() => {}
            }
            let mut batch = Batch::default();
            for holding in self.owed.drain(..) {
                batch.backs.entry(holding.source).or_default().push((holding, holding.count, None));
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
            self.owed.iter().for_each(|holding| shared.held.shut(holding.source / 2));
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
                self.acks.entry(holding.source).or_default().push((holding, 0, Some(confirmer)));
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
async fn settle(shared: &Shared, mode: Mode, source: Source, mut all: Vec<Plain>) -> Vec<Holding> {
    let settled = shared.settle(mode, source, &mut all).await;
    let confirmed = all.into_iter().map(|(holding, _, confirmer)| (holding, confirmer));
    answer(shared, settled, confirmed)
}

/// As [`settle`], by copies.
async fn replace(
    shared: &Shared,
    source: Source,
    mut all: Vec<(Holding, Box<Copy>, Confirmer)>,
) -> Vec<Holding> {
    let mut owed = Vec::new();
    while !all.is_empty() {
        let mut bytes = 0;
        let fits = all.iter().position(|(_, copy, _)| {
            bytes += copy.envelope.payload.len() + 1024;
            bytes > BYTES
        });
        let rest = all.split_off(fits.map_or(all.len(), |fits| fits.max(1)));
        let settled = shared.replace(source, &all).await;
        let confirmed = all.into_iter().map(|(holding, _, confirmer)| (holding, Some(confirmer)));
        owed.extend(answer(shared, settled, confirmed));
        all = rest;
    }
    owed
}

fn answer(
    shared: &Shared,
    settled: Result<Fenced>,
    all: impl Iterator<Item = (Holding, Option<Confirmer>)>,
) -> Vec<Holding> {
    let gone = settled.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let mut owed = Vec::new();
    let mut done = Vec::new();
    for (index, (holding, confirmer)) in all.enumerate() {
        let result = match &settled {
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
        let failed = matches!(&settled, Err(error) if !gone && error.kind() != ErrorKind::Closed);
        if failed {
            owed.push(holding);
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
    let mut text = error.to_string();
    if let Some(rest) = text.strip_prefix("redis: settle: ") {
        text = rest.to_owned();
    }
    error_of(error.kind(), "settle", text).class(error.retry_class())
}
