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

mod ledger;
mod switch;

use std::fmt;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anybroker::{
    Backoff, BoxError, Broker, Confirmation, DeadLetterFilter, DeadLetterLayer, Envelope, Event,
    Handler, IdempotencyLayer, Message, Outcome, Publisher, Redrive, RetryLayer, ServiceBuilder,
    Subscription, Worker, connect, handler_fn, permanent, shutdown_signal,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::ledger::{Book, Ledger};
use self::switch::{Phase, State};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.placed")]
struct OrderPlaced {
    order: u64,
}

const GROUP: &str = "billing";
const SOURCE: &str = "/shop";
/// How long nothing comes from a broker, before it is asked whether it has anything.
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
        ["switch", "from"] => Ok(state.enter(Phase::From).map(|()| ExitCode::SUCCESS)?),
        ["switch", "to"] => Ok(state.enter(Phase::To).map(|()| ExitCode::SUCCESS)?),
        ["drain"] => drain(&state).await,
        _ => Err("write one of: serve, status, switch to, switch from, drain".into()),
    }
}

fn group() -> Subscription {
    // What a killed process held comes back after its lease, where the broker has leases.
    Subscription::topic("order.placed").group(GROUP).lease(Duration::from_secs(10))
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
        let permit = tokio::select! {
            permit = state.permit() => permit?,
            () = &mut shutdown => return Err("ended while it waited for a drain".into()),
        };
        // The permit is held as long as anything here may use the old broker.
        let from = match &permit {
            Some(_) => Some(broker("ANYBROKER_FROM_URL").await?),
            None => None,
        };
        let is_over = session(state, &ledger, from.as_ref(), &to, &mut shutdown).await?;
        let mut waiting = depth(&*to).await?.all();
        if let Some(from) = from {
            waiting += depth(&*from).await?.all();
            from.close().await?;
        }
        drop(permit);
        if is_over {
            to.close().await?;
            return Ok(ledger.book().sum(waiting));
        }
    }
}

/// Publishes and handles; answers whether the service is over, or is to use other brokers than now.
async fn session(
    state: &State,
    ledger: &Ledger,
    from: Option<&Arc<dyn Broker>>,
    to: &Arc<dyn Broker>,
    shutdown: impl Future<Output = ()>,
) -> Result<bool, BoxError> {
    // Shared by both sides: whichever copy of a message comes first is handled, the others are not.
    // A copy that meets one in work comes back when the claim runs out, so the claim is short.
    let once = IdempotencyLayer::new(ledger.clone()).lease(Duration::from_secs(3));
    let (stop, stopping) = watch::channel(false);
    // Consumers first: a topic hands a message to the groups that it has when it is published.
    let mut workers = JoinSet::new();
    for (broker, release) in
        from.map(|from| (from, Release::Old)).into_iter().chain([(to, Release::New)])
    {
        let worker = Worker::new(broker.clone()).subscribe(group(), handler(release, &once));
        let (worker, mut stopping) = (worker.start().await?, stopping.clone());
        workers
            .spawn(worker.run_until(async move { stopping.wait_for(|stop| *stop).await.is_ok() }));
    }
    println!("serving: {:?}", state.phase()?);
    let ended = async {
        tokio::select! {
            () = shutdown => Ok(true),
            moved = state.until_moved(from.is_some()) => moved.map(|()| false),
        }
    };
    let is_over = publish(state, ledger, from, to, ended).await?;
    if is_over {
        ledger.settled().await;
    }
    stop.send_replace(true);
    while let Some(report) = workers.join_next().await {
        println!("worker: {}", report??);
    }
    Ok(is_over)
}

/// Publishes orders in bursts until `ended`, and answers that. They are noted before they are sent
/// and once they are confirmed: after a crash those in between are sent again, with the same ids.
async fn publish(
    state: &State,
    ledger: &Ledger,
    from: Option<&Arc<dyn Broker>>,
    to: &Arc<dyn Broker>,
    ended: impl Future<Output = io::Result<bool>>,
) -> Result<bool, BoxError> {
    let (from, to) = (from.map(|from| from.publisher()), to.publisher());
    let (mut ended, mut ticks) = (pin!(ended), interval(Duration::from_millis(50)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut ended => return Ok(ended?),
            _ = ticks.tick() => {}
        }
        let publisher = match (state.phase()?, &from) {
            (Phase::From, Some(from)) => from,
            // The service is about to come back to the old broker.
            (Phase::From, None) => continue,
            (Phase::To | Phase::Left, _) => &to,
        };
        let sends = ledger.open_orders().await.into_iter().map(|order| {
            // Now and then one is sent twice, as by a client that got no answer and tries elsewhere.
            let again = (order % 25 == 3).then(|| send(&to, order));
            (order, send(publisher, order), again)
        });
        let mut confirmed = String::new();
        for (order, sent, again) in sends.collect::<Vec<_>>() {
            match sent.await {
                Ok(()) => confirmed.extend(["published ", &order.to_string(), "\n"]),
                // It stays open, and is sent again with the next burst.
                Err(error) => eprintln!("order {order}: {error}"),
            }
            if let Some(again) = again {
                let _ = again.await;
            }
        }
        ledger.append(confirmed).await;
    }
}

fn id(order: u64) -> String {
    format!("order-{order}")
}

fn send(publisher: &Publisher, order: u64) -> Confirmation {
    publisher.publish(&OrderPlaced { order }).id(id(order)).source(SOURCE).start()
}

/// The service as it runs on the old broker, and as it runs on the new one.
#[derive(Clone, Copy, PartialEq)]
enum Release {
    Old,
    New,
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
    let _alone = state.alone()?;
    let (from, to) = (broker("ANYBROKER_FROM_URL").await?, broker("ANYBROKER_TO_URL").await?);
    to.declare(&group()).await?;
    let mut moved = 0;
    // Nobody publishes or consumes here any more, so that what is in flight is ready again, or its
    // lease runs out. Brokers count at their own pace: empty is what is so twice.
    while !(is_empty(&*from).await? && is_empty(&*from).await?) {
        for letter in from.dead_letters(&group(), &DeadLetterFilter::all(), 10).await?.entries {
            let why = letter.failure().map_or("", |failure| &failure.error);
            println!("dead letter {}: {why}", letter.envelope.id);
        }
        // Back to their group here, which nobody but us consumes.
        let redriven = from.redrive(&group(), &Redrive::all()).await?;
        println!("draining: {}, {redriven} dead letters sent back", depth(&*from).await?);
        moved += move_all(state, &*from, &to.publisher()).await?;
    }
    from.close().await?;
    to.close().await?;
    println!("drained: {moved} moved; the old broker is empty, and can be switched off");
    Ok(ExitCode::SUCCESS)
}

async fn is_empty(broker: &dyn Broker) -> Result<bool, BoxError> {
    sleep(QUIET / 2).await;
    let counts = depth(broker).await?;
    // What is in flight nobody needs to tell us: nobody consumes.
    let Counts([Some(_), _, Some(_), Some(_)]) = counts else {
        return Err(format!("the old broker does not count all that it has: {counts}").into());
    };
    Ok(counts.all() == 0)
}

/// Publishes to the new broker what the group still has on the old one, with its confirmation, and
/// only then acknowledges it; answers how many.
async fn move_all(state: &State, from: &dyn Broker, to: &Publisher) -> Result<u64, BoxError> {
    // Without a worker, which would judge the messages: give up what expired, say.
    let mut consumer = from.consume(&group(), 256).await?;
    let (mut moved, mut deliveries) = (0, Vec::new());
    loop {
        if state.phase()? != Phase::Left {
            return Err(format!("switched back after {moved} were moved").into());
        }
        let receive = poll_fn(|cx| consumer.poll_receive(cx, 256, &mut deliveries));
        match timeout(QUIET, receive).await {
            Ok(received) => received?,
            Err(_) => match depth(from).await? {
                depth if depth.coming() == 0 => break,
                // What is delayed comes when it is due.
                depth => println!("draining: {depth}, {moved} moved"),
            },
        }
        let sends: Vec<_> = deliveries
            .drain(..)
            .map(|delivery| {
                let envelope = Envelope::clone(delivery.envelope());
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

/// What the group has on a broker: ready, in flight, delayed, dead-lettered.
struct Counts([Option<u64>; 4]);

async fn depth(broker: &dyn Broker) -> Result<Counts, BoxError> {
    let depth = broker.depth(&group()).await?;
    Ok(Counts([depth.ready, depth.in_flight, depth.delayed, depth.dead_lettered]))
}

impl Counts {
    /// What comes to a consumer sooner or later.
    fn coming(&self) -> u64 {
        self.0[..3].iter().flatten().sum()
    }

    fn all(&self) -> u64 {
        self.0.iter().flatten().sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["ready", "in flight", "delayed", "dead letters"];
        let counts = names.iter().zip(self.0).map(|(name, count)| {
            count.map_or_else(|| format!("{name} unknown"), |count| format!("{name} {count}"))
        });
        f.write_str(&counts.collect::<Vec<_>>().join(" · "))
    }
}

async fn status(state: &State) -> Result<ExitCode, BoxError> {
    let (phase, mut waiting) = (state.phase()?, 0);
    println!("switch: {phase:?}");
    for (name, variable) in [("old", "ANYBROKER_FROM_URL"), ("new", "ANYBROKER_TO_URL")] {
        match broker(variable).await {
            Ok(broker) => {
                let counts = depth(&*broker).await?;
                waiting += counts.all();
                println!("{name}: {counts}");
            }
            // It may have been switched off.
            Err(error) if name == "old" && phase == Phase::Left => println!("{name}: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(Book::read(&fs::read_to_string(state.ledger())?).sum(waiting))
}
