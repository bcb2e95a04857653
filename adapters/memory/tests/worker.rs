//! What the worker does around a handler, on the memory broker and in virtual time.

use std::future::{Future, pending};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, DeadLetterFilter, DeadLetterLayer, Envelope, Expired, Message, Outcome,
    Outgoing, Queue, Report, RunningWorker, Subscription, Worker, permanent,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::{ServiceBuilder, service_fn};

type Answer = Result<Outcome, BoxError>;

async fn memory() -> Arc<dyn Broker> {
    anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap()
}

async fn publish(broker: &Arc<dyn Broker>, envelopes: impl IntoIterator<Item = Envelope>) {
    let producer = broker.producer();
    for envelope in envelopes {
        producer.send(Outgoing::new(Queue::new("work"), envelope)).await.unwrap();
    }
}

fn numbered(count: usize) -> impl Iterator<Item = Envelope> {
    (0..count).map(|number| Envelope::new("work", "{}").with_id(number.to_string()))
}

fn work() -> Subscription {
    Subscription::queue("work")
}

/// Starts a worker, and stops it when the sender is used.
async fn stop_with(worker: Worker) -> (oneshot::Sender<()>, impl Future<Output = Report>) {
    let running: RunningWorker = worker.start().await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(running.run_until(stopped));
    (stop, async move { run.await.unwrap().unwrap() })
}

async fn dead_letters(broker: &Arc<dyn Broker>) -> Vec<anybroker_core::DeadLetter> {
    broker.dead_letters(&work(), &DeadLetterFilter::all(), 100).await.unwrap().entries
}

async fn until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "it did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_always_fails_leaves_one_dead_letter_and_no_hot_loop() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let attempts: Arc<Mutex<Vec<(u32, Instant)>>> = Arc::default();
    let seen = Arc::clone(&attempts);
    let handler = service_fn(move |message: Message| {
        seen.lock().unwrap().push((message.attempt(), Instant::now()));
        async { Answer::Err("the database is away".into()) }
    });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    until(async || !dead_letters(&broker).await.is_empty()).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    stop.send(()).unwrap();
    let report = report.await;

    assert_eq!((report.handled, report.retried, report.dead_lettered), (0, 4, 1));
    let letters = dead_letters(&broker).await;
    assert_eq!(letters.len(), 1);
    let failure = letters[0].failure().unwrap();
    assert_eq!((&*failure.reason, &*failure.error), ("exhausted", "the database is away"));
    assert_eq!(letters[0].hop.attempts, 5);
    let attempts = attempts.lock().unwrap();
    assert_eq!(attempts.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    for (pair, least) in attempts.windows(2).zip([500, 1000, 2000, 4000]) {
        assert!(pair[1].1 - pair[0].1 >= Duration::from_millis(least), "a retry came early");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_given_up_at_once() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let handler = service_fn(|_: Message| async { Answer::Err(permanent("no such customer")) });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    until(async || !dead_letters(&broker).await.is_empty()).await;
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.retried, report.dead_lettered), (0, 1));
    assert_eq!(dead_letters(&broker).await[0].failure().unwrap().reason, "permanent");
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_its_message_an_attempt_and_the_others_nothing() {
    let broker = memory().await;
    publish(&broker, numbered(10)).await;
    let handler = service_fn(|message: Message| {
        // In the call itself, and in the future: neither may end the loop.
        assert!(message.envelope().id != "3" || message.attempt() > 1, "in the call");
        async move {
            assert!(message.envelope().id != "5" || message.attempt() > 1, "in the future");
            Answer::Ok(Outcome::Ack)
        }
    });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    until(async || broker.depth(&work()).await.unwrap().ready == Some(0)).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (10, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_retry_leaves_its_slot_to_others() {
    let broker = memory().await;
    publish(&broker, numbered(5)).await;
    let order: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&order);
    let handler = service_fn(move |message: Message| {
        let seen = Arc::clone(&seen);
        async move {
            if message.envelope().id == "0" && message.attempt() == 1 {
                return Answer::Ok(Outcome::Retry { after: Duration::from_secs(4) });
            }
            seen.lock().unwrap().push(message.envelope().id.clone());
            Ok(Outcome::Ack)
        }
    });
    let worker = Worker::new(broker.clone()).subscribe(work(), handler).concurrency(1);
    let (stop, report) = stop_with(worker).await;
    until(async || order.lock().unwrap().len() == 5).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.handled, 5);
    assert_eq!(*order.lock().unwrap(), ["1", "2", "3", "4", "0"]);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_retry_or_release_holds_back_its_key_only() {
    let broker = memory().await;
    let queue = Queue::new("keyed").ordered();
    let producer = broker.producer();
    for number in 0..12 {
        let envelope = Envelope::new("keyed", "{}")
            .with_id(number.to_string())
            .with_key(["a", "b", "c"][number % 3]);
        producer.send(Outgoing::new(queue.clone(), envelope)).await.unwrap();
    }
    let order: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let seen = Arc::clone(&order);
    let released = Arc::new(AtomicU32::new(0));
    let handler = service_fn(move |message: Message| {
        let envelope = message.envelope();
        let outcome = match (&*envelope.id, message.attempt()) {
            // Longer than what waits in the process otherwise.
            ("0", 1) => Outcome::Retry { after: Duration::from_mins(1) },
            ("1", 1) if released.fetch_add(1, Ordering::Relaxed) < 3 => {
                Outcome::Release { after: Duration::ZERO }
            }
            _ => {
                let key = envelope.key.clone().unwrap();
                seen.lock().unwrap().push((key, envelope.id.clone()));
                Outcome::Ack
            }
        };
        async { Answer::Ok(outcome) }
    });
    let worker = Worker::new(broker.clone()).subscribe(Subscription::queue(queue), handler);
    let (stop, report) = stop_with(worker).await;
    until(async || order.lock().unwrap().len() == 12).await;
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.handled, report.retried, report.released), (12, 1, 3));
    let order = order.lock().unwrap();
    for (key, ids) in
        [("a", ["0", "3", "6", "9"]), ("b", ["1", "4", "7", "10"]), ("c", ["2", "5", "8", "11"])]
    {
        let of_key: Vec<_> = order.iter().filter(|(k, _)| k == key).map(|(_, id)| &**id).collect();
        assert_eq!(of_key, ids, "key {key}");
    }
    assert_eq!(order.last().unwrap().0, "a", "the other keys did not wait for it");
}

#[tokio::test(start_paused = true)]
async fn a_pending_service_is_the_only_back_pressure() {
    let broker = memory().await;
    publish(&broker, numbered(100)).await;
    let gate = Arc::new(Notify::new());
    let running = Arc::new(AtomicUsize::new(0));
    let (open, count) = (Arc::clone(&gate), Arc::clone(&running));
    // Two layers from tower itself around the handler.
    let service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(3))
        .timeout(Duration::from_hours(2))
        .service(service_fn(move |_: Message| {
            let (open, count) = (Arc::clone(&open), Arc::clone(&count));
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                open.notified().await;
                Answer::Ok(Outcome::Ack)
            }
        }));
    let worker = Worker::new(broker.clone()).subscribe(work(), service).concurrency(8);
    let (stop, report) = stop_with(worker).await;
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert_eq!(running.load(Ordering::Relaxed), 3, "the limit lets three through");
    let depth = broker.depth(&work()).await.unwrap();
    assert!(depth.ready >= Some(92), "no more than the concurrency is received: {depth:?}");
    for _ in 0..100 {
        gate.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).unwrap();
    assert_eq!(report.await.handled, 100);
}

#[tokio::test(start_paused = true)]
async fn a_message_past_max_deliveries_is_given_up_unseen() {
    let broker = memory().await;
    publish(&broker, numbered(2)).await;
    let seen = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        let count = Arc::clone(&count);
        async move {
            if message.envelope().id == "0" {
                count.fetch_add(1, Ordering::Relaxed);
                // As after a crash: it is given back without an outcome, and counted.
                return Answer::Ok(Outcome::Retry { after: Duration::ZERO });
            }
            Ok(Outcome::Ack)
        }
    });
    let worker = Worker::new(broker.clone()).subscribe(work().max_deliveries(7), handler);
    let (stop, report) = stop_with(worker).await;
    until(async || !dead_letters(&broker).await.is_empty()).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.handled, 1);
    assert_eq!(seen.load(Ordering::Relaxed), 7);
    let dead_letters = dead_letters(&broker).await;
    assert_eq!(dead_letters[0].failure().unwrap().reason, "max-deliveries");
    assert_eq!(dead_letters[0].hop.attempts, 7, "the one that no handler saw is none");
}

#[tokio::test(start_paused = true)]
async fn expired_messages_are_dead_lettered_or_discarded_as_the_subscription_says() {
    for (policy, discarded, dead) in [(Expired::DeadLetter, 0, 1), (Expired::Discard, 1, 0)] {
        let broker = memory().await;
        let expires = anybroker_core::now() + Duration::from_secs(1);
        publish(&broker, numbered(1).map(|envelope| envelope.with_expires(expires))).await;
        publish(&broker, [Envelope::new("work", "{}").with_id("fresh")]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let handler = service_fn(|message: Message| async move {
            assert_eq!(message.envelope().id, "fresh");
            Answer::Ok(Outcome::Ack)
        });
        let worker = Worker::new(broker.clone()).subscribe(work().expired(policy), handler);
        let (stop, report) = stop_with(worker).await;
        until(async || {
            let depth = broker.depth(&work()).await.unwrap();
            depth.ready == Some(0) && depth.in_flight == Some(0)
        })
        .await;
        stop.send(()).unwrap();
        let report = report.await;
        assert_eq!((report.handled, report.discarded, report.dead_lettered), (1, discarded, dead));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_waits_and_is_not_counted() {
    let broker = memory().await;
    for (id, seconds) in [("short", 3), ("long", 90)] {
        let outgoing = Outgoing::new(Queue::new("work"), Envelope::new("work", "{}").with_id(id))
            .with_delay(Duration::from_secs(seconds));
        broker.producer().send(outgoing).await.unwrap();
    }
    let start = Instant::now();
    let seen: Arc<Mutex<Vec<(String, u32, u64)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        let entry = (message.envelope().id.clone(), message.attempt(), start.elapsed().as_secs());
        log.lock().unwrap().push(entry);
        async { Answer::Ok(Outcome::Ack) }
    });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    until(async || seen.lock().unwrap().len() == 2).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.handled, 2);
    assert_eq!(*seen.lock().unwrap(), [("short".to_owned(), 1, 3), ("long".to_owned(), 1, 90)]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_back_the_rest() {
    let broker = memory().await;
    publish(&broker, numbered(20)).await;
    let handler = service_fn(|_: Message| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Answer::Ok(Outcome::Ack)
    });
    let worker = Worker::new(broker.clone()).subscribe(work(), handler).concurrency(4);
    let (stop, report) = stop_with(worker).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.handled, report.stale, report.unsettled), (4, 0, 0));
    let depth = broker.depth(&work()).await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (Some(16), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_handler_past_the_drain_timeout_is_cut_off_and_its_message_given_back_uncounted() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let handler = service_fn(|_: Message| pending::<Answer>());
    let worker = Worker::new(broker.clone())
        .subscribe(work(), handler)
        .drain_timeout(Duration::from_secs(3));
    let (stop, report) = stop_with(worker).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.handled, report.released), (0, 1));
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_eq!(next_attempt(&broker).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_keeps_the_attempts_of_a_waiting_retry() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let handler = service_fn(|_: Message| async {
        Answer::Ok(Outcome::Retry { after: Duration::from_secs(2) })
    });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.retried, 2);
    assert_eq!(next_attempt(&broker).await, 3, "two attempts were used up in the process");
}

async fn next_attempt(broker: &Arc<dyn Broker>) -> u32 {
    let mut consumer = broker.consume(&work(), 1).await.unwrap();
    let mut received = Vec::new();
    std::future::poll_fn(|cx| consumer.poll_receive(cx, 1, &mut received)).await.unwrap();
    received[0].attempt()
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_its_handler_runs_or_its_retry_waits() {
    let broker = memory().await;
    publish(&broker, numbered(2)).await;
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let handler = service_fn(move |message: Message| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            if message.envelope().id == "0" {
                tokio::time::sleep(Duration::from_mins(1)).await;
            } else if message.attempt() == 1 {
                return Answer::Ok(Outcome::Retry { after: Duration::from_secs(5) });
            }
            Ok(Outcome::Ack)
        }
    });
    let subscription = work().lease(Duration::from_secs(1));
    let worker = Worker::new(broker.clone()).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    stop.send(()).unwrap();
    let report = report.await;
    assert_eq!((report.handled, report.retried, report.stale), (2, 1, 0));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_costs_the_others_of_its_loop_no_lease() {
    let broker = memory().await;
    publish(&broker, numbered(4)).await;
    let calls = Arc::new(AtomicU32::new(0));
    let (count, left) = (Arc::clone(&calls), Arc::new(Notify::new()));
    let done = Arc::clone(&left);
    let handler = service_fn(move |message: Message| {
        let (count, done) = (Arc::clone(&count), Arc::clone(&done));
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            // Let all four start, then block the thread for longer than a lease.
            tokio::task::yield_now().await;
            if message.envelope().id == "3" {
                std::thread::sleep(Duration::from_millis(2500));
                done.notify_one();
            }
            Answer::Ok(Outcome::Ack)
        }
    });
    let subscription = work().lease(Duration::from_secs(1));
    let running = Worker::new(broker.clone())
        .subscribe(subscription, handler)
        .concurrency(4)
        .loops(1)
        .start()
        .await
        .unwrap();
    let report = running.run_until(async move { left.notified().await }).await.unwrap();
    assert_eq!((report.handled, report.stale), (4, 0));
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_broker_closed_underneath_ends_the_worker_with_an_error() {
    let broker = memory().await;
    let handler = ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .service(service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) }));
    let running = Worker::new(broker.clone()).subscribe(work(), handler).start().await.unwrap();
    let run = tokio::spawn(running.run_until(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.close().await.unwrap();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), anybroker_core::ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_subscriptions_says_what_to_call() {
    let error = Worker::new(memory().await).start().await.unwrap_err();
    assert!(error.to_string().contains("subscribe"), "{error}");
}
