//! A shop: orders are commands on a queue, and each one placed is an event on a topic with two
//! groups. Handlers fail now and then, one order is broken, and one is sent twice.
//!
//! ```sh
//! cargo run --example orders                       # in memory: no server, no set-up
//! ANYBROKER_URL=amqp://localhost cargo run --features rabbitmq --example orders
//! ```
//!
//! Each run has names of its own, so that it can be repeated on one broker. It exits with 1 when a
//! message is lost, or when Ctrl-C ends it early.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anybroker::{
    Backoff, BoxError, Broker, Command, DeadLetter, DeadLetterFilter, DeadLetterLayer, Event,
    IdempotencyLayer, Jitter, MemoryIdempotencyStore, Message, Publisher, Queue, Redrive,
    RetryLayer, ServiceBuilder, Subscription, TimeoutLayer, Topic, Worker, connect, handler_fn,
    shutdown_signal,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// A command asks for something: one handler gets it.
#[derive(Serialize, Deserialize, Command)]
#[command(type = "order.place", version = 1)]
struct PlaceOrder {
    order: u64,
    pieces: u32,
}

/// An event says that something happened: every group gets its own copy.
#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.placed", version = 1)]
struct OrderPlaced {
    order: u64,
}

const ORDERS: u64 = 10;
/// This order has no pieces, which the shop cannot handle until it is mended.
const BROKEN: u64 = 7;
const ATTEMPTS: u32 = 3;

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let url = std::env::var("ANYBROKER_URL").unwrap_or_else(|_| "memory://".to_owned());
    run(&url).await
}

pub(crate) async fn run(url: &str) -> Result<ExitCode, BoxError> {
    LazyLock::force(&BEGUN);
    let broker = connect(url).await?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let queue = Queue::new(format!("order.place.{run}"));
    let topic = Topic::new(format!("order.placed.{run}"));
    let orders = Subscription::queue(queue.clone());
    let email = Subscription::topic(topic.clone()).group("email");
    let billing = Subscription::topic(topic.clone()).group("billing");
    let shop = Shop::new(broker.publisher(), topic);

    // Around every handler, from the outside in: give up what is hopeless, skip what was handled
    // before, try again what failed, and end what hangs.
    let once = IdempotencyLayer::new(MemoryIdempotencyStore::new());
    let backoff = Backoff::exponential(Duration::from_millis(200)).jitter(Jitter::Equal);
    let safely = ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(&once)
        .layer(RetryLayer::new(backoff).max_attempts(ATTEMPTS))
        .layer(TimeoutLayer::new(Duration::from_secs(5)));

    let [till, post, bank] = [(); 3].map(|()| shop.clone());
    let place = handler_fn(move |command: PlaceOrder, message| {
        let shop = till.clone();
        async move { shop.place(command, message).await }
    });
    let send_mail = handler_fn(move |event: OrderPlaced, message| {
        let shop = post.clone();
        async move { shop.note("email", event.order, &message, event.order.is_multiple_of(4)) }
    });
    let send_bill = handler_fn(move |event: OrderPlaced, message| {
        let shop = bank.clone();
        async move { shop.note("billing", event.order, &message, event.order == 6) }
    });
    let worker = Worker::new(broker.clone())
        .subscribe(orders.clone(), safely.clone().service(place))
        .subscribe(email, safely.clone().service(send_mail))
        .subscribe(billing, safely.service(send_bill))
        .start()
        .await?;

    // The worker runs until the story is told, or until Ctrl-C; then it drains.
    let mut redriven = Err::<u64, BoxError>("stopped early: the rest waits on the broker".into());
    let report = worker
        .run_until(async {
            tokio::select! {
                end = story(&*broker, &shop, &queue, &orders, &once) => redriven = end,
                () = shutdown_signal() => {}
            }
        })
        .await?;
    broker.close().await?;

    if let Err(why) = &redriven {
        say("", &why.to_string());
    }
    let (published, handled, lost) = shop.ledger().count();
    let unhandled = if redriven.is_ok() { "lost" } else { "unhandled" };
    println!(
        "\npublished {published} · handled {handled} · retried {} · duplicates {} · \
         dead-lettered {} · redriven {} · {unhandled} {lost}",
        report.retried,
        once.duplicates(),
        report.dead_lettered,
        redriven.as_ref().unwrap_or(&0),
    );
    Ok(if lost == 0 && redriven.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What happens, in order; answers how many dead letters were sent back.
async fn story(
    broker: &dyn Broker,
    shop: &Shop,
    queue: &Queue,
    orders: &Subscription,
    once: &IdempotencyLayer,
) -> Result<u64, BoxError> {
    say("", &format!("{ORDERS} orders are published as commands"));
    for order in 1..=ORDERS {
        shop.order(queue, order).await?;
    }
    // All but the broken one are placed, mailed and billed.
    until("the orders to be handled", || shop.ledger().count().1 == 3 * (ORDERS - 1)).await?;

    say("", "order 2 is published again, with the same id");
    shop.order(queue, 2).await?;
    until("the duplicate", || once.duplicates() == 1).await?;
    say("orders", "order 2 was handled before: acknowledged, and not handled again");

    let dead_letters = dead_letters(broker, orders).await?;
    say("", "the dead-letter queue of the orders:");
    for DeadLetter { envelope, hop } in dead_letters {
        let Some(failure) = hop.failure else { continue };
        let (id, reason, error) = (&envelope.id, failure.reason, failure.error);
        say("", &format!("    {id}, {reason} after {} attempts: {error}", hop.attempts));
    }

    say("", "the shop is mended, and the dead letter sent back to its queue");
    shop.mended.store(true, Ordering::Relaxed);
    let redriven = broker.redrive(orders, &Redrive::all()).await?;
    until("the last order", || shop.ledger().count().1 == 3 * ORDERS).await?;
    Ok(redriven)
}

/// The handlers, and what they share.
#[derive(Clone)]
struct Shop {
    publisher: Publisher,
    topic: Topic,
    ledger: Arc<Mutex<Ledger>>,
    mended: Arc<AtomicBool>,
}

/// What must be handled and what was: a group and an order each.
#[derive(Default)]
struct Ledger {
    published: u64,
    due: BTreeSet<(&'static str, u64)>,
    handled: BTreeSet<(&'static str, u64)>,
}

impl Shop {
    fn new(publisher: Publisher, topic: Topic) -> Self {
        Self { publisher, topic, ledger: Arc::default(), mended: Arc::default() }
    }

    /// Publishes the command; what is confirmed must be handled.
    async fn order(&self, queue: &Queue, order: u64) -> Result<(), BoxError> {
        let command = PlaceOrder { order, pieces: if order == BROKEN { 0 } else { 2 } };
        let id = format!("order-{order}");
        self.publisher.publish(&command).to(queue.clone()).id(id).await?;
        self.ledger().confirmed(&["orders"], order);
        Ok(())
    }

    async fn place(&self, command: PlaceOrder, message: Message) -> Result<(), BoxError> {
        let PlaceOrder { order, pieces } = command;
        if pieces == 0 && !self.mended.load(Ordering::Relaxed) {
            return fails("orders", order, &message, "cannot pack 0 pieces");
        }
        if order % 3 == 0 && message.attempt() == 1 {
            return fails("orders", order, &message, "the warehouse does not answer");
        }
        // The id comes from the order: should this handler run twice, it is still one event.
        let event = self.publisher.publish(&OrderPlaced { order }).id(format!("placed-{order}"));
        event.to(self.topic.clone()).await?;
        self.ledger().confirmed(&["email", "billing"], order);
        self.ledger().handled.insert(("orders", order));
        say("orders", &format!("order {order} is placed"));
        Ok(())
    }

    fn note(
        &self,
        group: &'static str,
        order: u64,
        message: &Message,
        is_shaky: bool,
    ) -> Result<(), BoxError> {
        if is_shaky && message.attempt() == 1 {
            return fails(group, order, message, "the network is down");
        }
        self.ledger().handled.insert((group, order));
        say(group, &format!("order {order} is done"));
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn confirmed(&mut self, groups: &[&'static str], order: u64) {
        self.published += 1;
        self.due.extend(groups.iter().map(|group| (*group, order)));
    }

    /// Published, handled, lost.
    fn count(&self) -> (u64, u64, u64) {
        let lost = self.due.difference(&self.handled).count();
        (self.published, self.handled.len() as u64, lost as u64)
    }
}

fn fails(group: &str, order: u64, message: &Message, why: &str) -> Result<(), BoxError> {
    let attempt = message.attempt();
    let next = if attempt < ATTEMPTS { "it is tried again" } else { "it is given up" };
    say(group, &format!("order {order} fails: {why} (attempt {attempt} of {ATTEMPTS}); {next}"));
    Err(why.into())
}

/// Waits for the first dead letter, and lists all.
async fn dead_letters(
    broker: &dyn Broker,
    subscription: &Subscription,
) -> Result<Vec<DeadLetter>, BoxError> {
    loop {
        let peek = broker.dead_letters(subscription, &DeadLetterFilter::all(), 10).await?;
        if !peek.entries.is_empty() {
            return Ok(peek.entries);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for something that the handlers bring about.
async fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), BoxError> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("waited 30 s for {what}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn say(who: &str, text: &str) {
    let (who, seconds) = (if who.is_empty() { "#" } else { who }, BEGUN.elapsed().as_secs_f64());
    println!("{seconds:6.2} s  {who:<8} {text}");
}
