//! Moves a live service from one broker to another and loses nothing: any pair, by two URLs.
//!
//! ```sh
//! export ANYBROKER_FROM_URL=amqp://old ANYBROKER_TO_URL=kafka://new   # what is moved, and where
//! migrate="cargo run --features full --example migrate --"
//! $migrate serve       # the service: publishes and handles, on both brokers; Ctrl-C ends it
//! $migrate status      # in another terminal: who uses what, what waits where, what is lost
//! $migrate switch to   # producers go over; consumers stay on both
//! $migrate drain       # the service leaves the old broker; what is left there is moved
//! $migrate switch from # back again, at any step
//! ```
//!
//! Each may be killed (-9) at any point and run again. What was published and handled is in a ledger
//! (in `ANYBROKER_STATE`, `target/migrate` unless set), each line on the disk before the next step.
//! The end of `serve`, and `status`, print its sum, and exit with 1 unless lost is 0.
//! `docs/migrate.md` says why it goes this way.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::future::poll_fn;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use anybroker::adapter::{Begin, Claim, IdempotencyKey, IdempotencyStore, StoreFuture};
use anybroker::{
    Backoff, BoxError, Broker, DeadLetterFilter, DeadLetterLayer, Event, Handler, IdempotencyLayer,
    MemoryIdempotencyStore, Message, Outcome, Publisher, Redrive, RetryLayer, RunningWorker,
    ServiceBuilder, Subscription, Worker, connect, handler_fn, permanent, shutdown_signal,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.placed")]
struct OrderPlaced {
    order: u64,
}

const GROUP: &str = "billing";
const SOURCE: &str = "/shop";
/// Orders that are published together, and how often.
const BURST: (u64, Duration) = (20, Duration::from_millis(50));
/// How long the end of the service waits for what is still to be handled, and hears of nothing.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long nothing comes from a broker that counts nothing, before it is called empty.
const QUIET: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

pub(crate) async fn run(arguments: &[&str]) -> Result<ExitCode, BoxError> {
    let state = State::open()?;
    match arguments {
        ["serve"] => serve(&state).await,
        ["status"] => status(&state).await,
        ["switch", "from"] => state.enter(Phase::From),
        ["switch", "to"] => state.enter(Phase::To),
        ["drain"] => drain(&state).await,
        _ => Err("write one of: serve, status, switch to, switch from, drain".into()),
    }
}

fn group() -> Subscription {
    Subscription::topic("order.placed").group(GROUP)
}

async fn broker(variable: &str) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(variable).map_err(|_| format!("set {variable} to a broker's URL"))?;
    Ok(connect(&url).await.map_err(|error| format!("{variable}: {error}"))?)
}

// ----- the service ------------------------------------------------------------------------------

/// Runs the service until Ctrl-C, and starts anew within it when it leaves the old broker or comes
/// back to it.
async fn serve(state: &State) -> Result<ExitCode, BoxError> {
    let ledger = Ledger::open(&state.ledger())?;
    let to = broker("ANYBROKER_TO_URL").await?;
    let mut shutdown = pin!(shutdown_signal());
    loop {
        let (phase, permit) = tokio::select! {
            permitted = state.permit() => permitted?,
            () = &mut shutdown => return Ok(ledger.book().sum(waiting(&*to).await?)),
        };
        println!("serving: {phase:?}");
        // Held as long as anything here may use the old broker, also by a process that is killed.
        let from = match &permit {
            Some(_) => Some(broker("ANYBROKER_FROM_URL").await?),
            None => None,
        };
        let ended = session(state, &ledger, from.as_ref(), &to, &mut shutdown).await?;
        let mut left = waiting(&*to).await?;
        if let Some(from) = from {
            left += waiting(&*from).await?;
            from.close().await?;
        }
        drop(permit);
        if ended {
            to.close().await?;
            return Ok(ledger.book().sum(left));
        }
    }
}

/// Publishes and handles; answers whether the service is to end, or to use other brokers than now.
async fn session(
    state: &State,
    ledger: &Arc<Ledger>,
    from: Option<&Arc<dyn Broker>>,
    to: &Arc<dyn Broker>,
    shutdown: impl Future<Output = ()>,
) -> Result<bool, BoxError> {
    // Shared by both sides: whichever copy of a message comes first is handled, the others are not.
    // A copy that meets one in work comes back when the claim runs out, so the claim is short.
    let once = IdempotencyLayer::new(ledger.clone()).lease(Duration::from_secs(3));
    // Consumers first: a topic hands a message to the groups that it has when it is published.
    let new = work(to, Release::New, &once).await?;
    let old = match from {
        Some(from) => Some(work(from, Release::Old, &once).await?),
        None => None,
    };
    let (stop, stopping) = watch::channel(false);
    let stopping = || {
        let mut stopping = stopping.clone();
        async move { stopping.wait_for(|stopping| *stopping).await.is_ok() }
    };
    let story = async {
        let publishers = (from.map(|from| from.publisher()), to.publisher());
        let ended = async {
            tokio::select! {
                () = shutdown => Ok(true),
                moved = state.until_moved(from.is_some()) => moved.map(|()| false),
            }
        };
        let ended = publish(state, ledger, &publishers, ended).await;
        if matches!(ended, Ok(true)) {
            ledger.settled().await;
        }
        stop.send_replace(true);
        ended
    };
    let old = async {
        match old {
            Some(old) => old.run_until(stopping()).await.map(|_| ()),
            None => Ok(()),
        }
    };
    let (ended, new, old) = tokio::join!(story, new.run_until(stopping()), old);
    new?;
    old?;
    ended
}

/// Publishes orders in bursts until `ended`, and answers that. They are noted before they are sent
/// and once they are confirmed: after a crash those in between are sent again, with the same ids.
async fn publish(
    state: &State,
    ledger: &Ledger,
    (from, to): &(Option<Publisher>, Publisher),
    ended: impl Future<Output = Result<bool, BoxError>>,
) -> Result<bool, BoxError> {
    let (mut ended, mut ticks) = (pin!(ended), interval(BURST.1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut ended => return ended,
            _ = ticks.tick() => {}
        }
        let (publisher, other) = match (state.phase()?, from) {
            (Phase::From, Some(from)) => (from, Some(to)),
            // The service is about to come back to the old broker.
            (Phase::From, None) => continue,
            (Phase::To | Phase::Left, _) => (to, None),
        };
        let mut open = ledger.book().open.clone();
        if open.is_empty() {
            open = ledger.plan().await;
        }
        let sends: Vec<_> = open.iter().map(|order| (order, send(publisher, *order))).collect();
        // Now and then one goes to both brokers, as from a client that got no answer.
        for order in open.iter().filter(|order| *order % 25 == 3) {
            if let Some(other) = other {
                report(*order, send(other, *order).await);
            }
        }
        let mut confirmed = String::new();
        for (order, sent) in sends {
            // Without a confirmation it stays open, and is sent again with the next burst.
            if report(*order, sent.await) {
                confirmed += &format!("published {order}\n");
            }
        }
        ledger.append(confirmed).await;
    }
}

fn report(order: u64, sent: anybroker::Result<()>) -> bool {
    sent.inspect_err(|error| eprintln!("order {order}: {error}")).is_ok()
}

fn id(order: u64) -> String {
    format!("order-{order}")
}

fn send(publisher: &Publisher, order: u64) -> anybroker::Confirmation {
    publisher.publish(&OrderPlaced { order }).id(id(order)).source(SOURCE).start()
}

/// The service as it runs on the old broker, and as it runs on the new one.
#[derive(Clone, Copy, PartialEq)]
enum Release {
    Old,
    New,
}

async fn work(
    broker: &Arc<dyn Broker>,
    release: Release,
    once: &IdempotencyLayer,
) -> Result<RunningWorker, BoxError> {
    let worker = Worker::new(broker.clone()).subscribe(group(), handler(release, once));
    Ok(worker.start().await?)
}

fn handler(release: Release, once: &IdempotencyLayer) -> impl Handler {
    ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(once.clone())
        .layer(RetryLayer::new(Backoff::fixed(Duration::from_millis(200))).max_attempts(3))
        .service(handler_fn(move |event: OrderPlaced, message: Message| async move {
            sleep(Duration::from_millis(5)).await;
            // So that every way of a message is on the road when it moves: repeated soon and late,
            // and given up.
            match event.order % 40 {
                7 if release == Release::Old => Err(permanent("this release cannot bill it")),
                11 if release == Release::Old && message.attempt() == 1 => {
                    Ok(Outcome::Retry { after: Duration::from_secs(6) })
                }
                13 if message.attempt() == 1 => Err("the bank does not answer".into()),
                // Its effect is written where the layer outside notes it as done: in the ledger.
                _ => Ok::<_, BoxError>(Outcome::Ack),
            }
        }))
}

// ----- the move ---------------------------------------------------------------------------------

/// Moves what is left on the old broker, and ends when it is empty and nobody uses it.
async fn drain(state: &State) -> Result<ExitCode, BoxError> {
    if state.phase()? == Phase::From {
        return Err("producers still use the old broker: `migrate switch to` comes first".into());
    }
    state.enter(Phase::Left)?;
    let _alone = state.alone().await?;
    let (from, to) = (broker("ANYBROKER_FROM_URL").await?, broker("ANYBROKER_TO_URL").await?);
    to.declare(&group()).await?;
    let mut moved = 0;
    // Nobody publishes or consumes here any more, so that what is in flight is ready again, or its
    // lease runs out. Brokers count at their own pace: empty is what is so twice.
    while waiting(&*from).await? > 0 || {
        sleep(QUIET).await;
        waiting(&*from).await? > 0
    } {
        let letters = from.dead_letters(&group(), &DeadLetterFilter::all(), 10).await?;
        for letter in &letters.entries {
            let failure =
                letter.failure().map(|failure| format!("{}: {}", failure.reason, failure.error));
            println!("dead letter {}: {}", letter.envelope.id, failure.unwrap_or_default());
        }
        // Back to their group here, which nobody but us consumes.
        let redriven = from.redrive(&group(), &Redrive::all()).await?;
        println!("draining: {} · {redriven} dead letters sent back", depth(&*from).await?);
        moved += move_all(state, &*from, &to.publisher()).await?;
    }
    from.close().await?;
    to.close().await?;
    println!("drained: {moved} moved; the old broker is empty, and can be switched off");
    Ok(ExitCode::SUCCESS)
}

/// Publishes to the new broker what the group still has on the old one, with its confirmation, and
/// only then acknowledges it; answers how many.
async fn move_all(state: &State, from: &dyn Broker, to: &Publisher) -> Result<u64, BoxError> {
    // Without a worker, which would judge the messages: give up what expired, say.
    let mut consumer = from.consume(&group().lease(Duration::from_mins(2)), 256).await?;
    let (mut moved, mut deliveries) = (0, Vec::new());
    loop {
        if state.phase()? != Phase::Left {
            return Err(format!("switched back after {moved} were moved").into());
        }
        let receive = poll_fn(|cx| consumer.poll_receive(cx, 256, &mut deliveries));
        match timeout(QUIET, receive).await {
            Ok(received) => received?,
            Err(_) if is_idle(from).await? => break,
            // What is delayed comes when it is due.
            Err(_) => println!("draining: {} · moved {moved}", depth(from).await?),
        }
        let sends: Vec<_> = deliveries
            .drain(..)
            .map(|delivery| {
                let envelope = anybroker::Envelope::clone(delivery.envelope());
                let mut publish = to.publish_envelope(group().destination().clone(), envelope);
                let due = delivery.hop().not_before;
                if let Some(early) = due.and_then(|due| due.duration_since(SystemTime::now()).ok())
                {
                    publish = publish.delay(early);
                }
                (publish.start(), delivery)
            })
            .collect();
        let mut settled = Vec::new();
        for (sent, delivery) in sends {
            // On an error the rest is dropped, and comes back.
            sent.await?;
            settled.push(delivery.settle(Outcome::Ack));
        }
        for settled in settled {
            settled.await?;
            moved += 1;
        }
    }
    consumer.close().await?;
    Ok(moved)
}

/// Whether nothing is left but dead letters.
async fn is_idle(broker: &dyn Broker) -> Result<bool, BoxError> {
    let depth = broker.depth(&group()).await?;
    Ok([depth.ready, depth.in_flight, depth.delayed].iter().all(|count| count.unwrap_or(0) == 0))
}

/// How many the group still has to handle, dead letters included, where the broker can count.
async fn waiting(broker: &dyn Broker) -> Result<u64, BoxError> {
    let depth = broker.depth(&group()).await?;
    let counts = [depth.ready, depth.in_flight, depth.delayed, depth.dead_lettered];
    Ok(counts.into_iter().flatten().sum())
}

async fn depth(broker: &dyn Broker) -> Result<String, BoxError> {
    let depth = broker.depth(&group()).await?;
    let show = |count: Option<u64>| count.map_or("unknown".to_owned(), |count| count.to_string());
    Ok(format!(
        "ready {} · in flight {} · delayed {} · dead letters {}",
        show(depth.ready),
        show(depth.in_flight),
        show(depth.delayed),
        show(depth.dead_lettered)
    ))
}

async fn status(state: &State) -> Result<ExitCode, BoxError> {
    let phase = state.phase()?;
    println!(
        "{}",
        match phase {
            Phase::From => "producers use the old broker, consumers both",
            Phase::To => "producers use the new broker, consumers both",
            Phase::Left => "the old broker is left: producers and consumers use the new one",
        }
    );
    let mut left = 0;
    for (name, variable) in [("old", "ANYBROKER_FROM_URL"), ("new", "ANYBROKER_TO_URL")] {
        let found = match broker(variable).await {
            Ok(broker) => {
                broker.declare(&group()).await?;
                left += waiting(&*broker).await?;
                depth(&*broker).await?
            }
            // It may have been switched off.
            Err(error) if name == "old" && phase == Phase::Left => error.to_string(),
            Err(error) => return Err(error),
        };
        println!("{name}: {found}");
    }
    Ok(Book::read(&state.ledger())?.sum(left))
}

// ----- what outlives a process ------------------------------------------------------------------

/// Which broker the service uses: the content of the switch file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Producers use the old broker, consumers both.
    From,
    /// Producers use the new broker, consumers both.
    To,
    /// The old broker is left.
    Left,
}

/// A folder with the switch, the ledger, and a lock that tells whether anybody uses the old broker.
struct State(PathBuf);

impl State {
    fn open() -> io::Result<Self> {
        let folder =
            std::env::var_os("ANYBROKER_STATE").map_or("target/migrate".into(), PathBuf::from);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    fn ledger(&self) -> PathBuf {
        self.0.join("ledger")
    }

    fn phase(&self) -> io::Result<Phase> {
        match fs::read_to_string(self.0.join("switch")).as_deref() {
            Ok("to") => Ok(Phase::To),
            Ok("left") => Ok(Phase::Left),
            Ok(_) => Ok(Phase::From),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Phase::From),
            Err(error) => Err(io::Error::new(error.kind(), format!("the switch: {error}"))),
        }
    }

    /// Replaces the switch in one step: whoever reads it finds the one or the other.
    fn enter(&self, phase: Phase) -> Result<ExitCode, BoxError> {
        let next = self.0.join("switch.next");
        let mut file = File::create(&next)?;
        file.write_all(format!("{phase:?}").to_lowercase().as_bytes())?;
        file.sync_all()?;
        fs::rename(next, self.0.join("switch"))?;
        File::open(&self.0)?.sync_all()?;
        println!("switched: {phase:?}");
        Ok(ExitCode::SUCCESS)
    }

    fn lock(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(self.0.join("lock"))
    }

    /// The phase, and the right to use the old broker in it, which waits while a drain has it alone.
    /// The system takes it from a process that dies.
    async fn permit(&self) -> Result<(Phase, Option<File>), BoxError> {
        loop {
            let file = self.lock()?;
            let locked = file.try_lock_shared();
            // Read under the lock: a drain that came before has said so here.
            match (self.phase()?, locked) {
                (Phase::Left, _) => return Ok((Phase::Left, None)),
                (phase, Ok(())) => return Ok((phase, Some(file))),
                (_, Err(TryLockError::WouldBlock)) => sleep(Duration::from_millis(100)).await,
                (_, Err(TryLockError::Error(error))) => return Err(error.into()),
            }
        }
    }

    /// The old broker for oneself, once every service has left it.
    async fn alone(&self) -> Result<File, BoxError> {
        let file = self.lock()?;
        for _ in 0..600 {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(100)).await,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        Err("a service still uses the old broker after a minute; is another drain running?".into())
    }

    /// Waits until the service has to leave the old broker, or may come back to it.
    async fn until_moved(&self, uses_old: bool) -> Result<(), BoxError> {
        while (self.phase()? != Phase::Left) == uses_old {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// What was published and handled: the sum of the ledger's lines.
#[derive(Debug, Default)]
struct Book {
    planned: u64,
    /// Planned and not confirmed: after a crash nobody knows whether a broker has them.
    open: BTreeSet<u64>,
    handled: HashSet<String>,
    duplicates: u64,
}

impl Book {
    fn read(path: &Path) -> io::Result<Self> {
        let mut book = Self::default();
        match fs::read_to_string(path) {
            // A killed process leaves half a line at most, the last.
            Ok(text) => text.split_inclusive('\n').for_each(|line| book.add(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(book)
    }

    fn add(&mut self, line: &str) {
        let Some((what, which)) = line.strip_suffix('\n').and_then(|line| line.split_once(' '))
        else {
            return;
        };
        match (what, which.parse()) {
            ("planned", Ok(last)) => {
                self.open.extend(self.planned + 1..=last);
                self.planned = last;
            }
            ("published", Ok(order)) => _ = self.open.remove(&order),
            ("handled", _) if self.handled.insert(which.to_owned()) => {}
            ("handled" | "duplicate", _) => self.duplicates += 1,
            _ => {}
        }
    }

    fn unhandled(&self) -> u64 {
        let key = |order| IdempotencyKey::new(GROUP, SOURCE, &id(order)).to_string();
        let confirmed = (1..=self.planned).filter(|order| !self.open.contains(order));
        confirmed.filter(|order| !self.handled.contains(&key(*order))).count() as u64
    }

    /// Prints the sum; what still waits on a broker is not lost.
    fn sum(&self, waiting: u64) -> ExitCode {
        let (published, unhandled) = (self.planned - self.open.len() as u64, self.unhandled());
        println!(
            "published {published} · handled {} · duplicates {} · {} {unhandled}",
            self.handled.len(),
            self.duplicates,
            if waiting > 0 && unhandled > 0 { "unhandled" } else { "lost" },
        );
        if unhandled == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The ledger, open to write; it is the idempotency store too, so that a message's effect and the
/// note that it was handled are one line, as they are one transaction in a service's database.
#[derive(Debug)]
struct Ledger {
    book: Arc<Mutex<Book>>,
    lines: mpsc::Sender<(String, oneshot::Sender<()>)>,
    /// Who handles what now; a crash frees it.
    claims: Arc<MemoryIdempotencyStore>,
}

impl Ledger {
    fn open(path: &Path) -> Result<Arc<Self>, BoxError> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        // The claims are in this process: another one would not see them.
        file.try_lock().map_err(|error| format!("another `migrate serve` is running: {error}"))?;
        let text = fs::read_to_string(path)?;
        file.set_len(text.rfind('\n').map_or(0, |end| end as u64 + 1))?;
        let book = Arc::new(Mutex::new(Book::read(path)?));
        let (lines, written) = mpsc::channel::<(String, oneshot::Sender<()>)>();
        let sums = book.clone();
        // Lines that come together share one way to the disk.
        std::thread::spawn(move || {
            while let Ok(first) = written.recv() {
                let batch: Vec<_> = [first].into_iter().chain(written.try_iter()).collect();
                let text: String = batch.iter().map(|(line, _)| line.as_str()).collect();
                if let Err(error) = file.write_all(text.as_bytes()).and_then(|()| file.sync_data())
                {
                    eprintln!("the ledger cannot be written: {error}");
                    std::process::abort();
                }
                text.split_inclusive('\n').for_each(|line| lock(&sums).add(line));
                batch.into_iter().for_each(|(_, done)| _ = done.send(()));
            }
        });
        Ok(Arc::new(Self { book, lines, claims: Arc::new(MemoryIdempotencyStore::new()) }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Adds lines; resolves when they are on the disk, and goes on when it is dropped.
    fn append(&self, lines: String) -> impl Future<Output = ()> + use<> {
        let (done, is_done) = oneshot::channel();
        // The writer ends with the process alone.
        let _ = self.lines.send((lines, done));
        async { _ = is_done.await }
    }

    /// Notes that the next orders are about to be published.
    async fn plan(&self) -> BTreeSet<u64> {
        let last = self.book().planned + BURST.0;
        self.append(format!("planned {last}\n")).await;
        self.book().open.clone()
    }

    /// Waits until all is handled, or nothing more happens.
    async fn settled(&self) {
        let mut last = (self.book().unhandled(), Instant::now());
        while last.0 > 0 && last.1.elapsed() < PATIENCE {
            sleep(Duration::from_millis(200)).await;
            let unhandled = self.book().unhandled();
            if unhandled != last.0 {
                last = (unhandled, Instant::now());
            }
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IdempotencyStore for Ledger {
    fn begin(&self, key: IdempotencyKey, print: u64, lease: Duration) -> StoreFuture<Begin> {
        if self.book().handled.contains(&key.to_string()) {
            drop(self.append(format!("duplicate {key}\n")));
            return StoreFuture::ready(Ok(Begin::Done));
        }
        self.claims.begin(key, print, lease)
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        self.claims.renew(claim, lease)
    }

    /// Remembers it for ever. The claim ends once the line is on the disk: until then another copy
    /// must wait, since it would be acknowledged for nothing if this process died now.
    fn complete(&self, claim: Claim, _: Duration) -> StoreFuture<()> {
        let written = self.append(format!("handled {}\n", claim.key()));
        let claims = self.claims.clone();
        StoreFuture::run(async move {
            written.await;
            claims.abandon(claim).await
        })
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        self.claims.abandon(claim)
    }
}
