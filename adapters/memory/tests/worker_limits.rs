//! What limits a message's attempts, and what uses none up: on the memory broker and in virtual
//! time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anybroker_core::{
    Backoff, BoxError, Broker, DeadLetterFilter, Envelope, ErrorKind, Message, Outcome, Outgoing,
    Queue, Report, RetryLayer, RunningWorker, Subscription, Worker, permanent,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
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
async fn more_attempts_than_the_default_limit_are_all_made_and_the_last_error_is_kept() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let seen = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&seen);
    let handler = ServiceBuilder::new()
        .layer(RetryLayer::new(Backoff::fixed(Duration::from_secs(9))).max_attempts(30))
        .service(service_fn(move |message: Message| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { Answer::Err(format!("no answer to attempt {}", message.attempt()).into()) }
        }));
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    until(async || !dead_letters(&broker).await.is_empty()).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.dead_lettered, 1);
    let dead_letters = dead_letters(&broker).await;
    let failure = dead_letters[0].failure().unwrap();
    assert_eq!((&*failure.reason, &*failure.error), ("exhausted", "no answer to attempt 30"));
    assert_eq!((seen.load(Ordering::Relaxed), dead_letters[0].hop.attempts), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn a_failing_message_keeps_its_last_error_past_a_stated_limit() {
    let broker = memory().await;
    publish(&broker, numbered(1)).await;
    let handler = service_fn(|_: Message| async { Answer::Err("no answer".into()) });
    let worker = Worker::new(broker.clone()).subscribe(work().max_deliveries(3), handler);
    let (stop, report) = stop_with(worker).await;
    until(async || !dead_letters(&broker).await.is_empty()).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.dead_lettered, 1);
    let dead_letters = dead_letters(&broker).await;
    assert_eq!(dead_letters[0].failure().unwrap().error, "no answer");
    assert_eq!(dead_letters[0].hop.attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_is_when_the_handler_failed_however_long_the_wait() {
    for wait in [2, 60] {
        let broker = memory().await;
        publish(&broker, numbered(1)).await;
        let begun = anybroker_core::now();
        let handler = service_fn(move |message: Message| async move {
            if message.attempt() == 1 {
                return Answer::Ok(Outcome::Retry { after: Duration::from_secs(wait) });
            }
            Err(permanent("no such card"))
        });
        let (stop, report) =
            stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
        until(async || !dead_letters(&broker).await.is_empty()).await;
        stop.send(()).unwrap();
        assert_eq!(report.await.dead_lettered, 1);
        let hop = dead_letters(&broker).await.remove(0).hop;
        // The virtual clock is moved by the real one, which differs by some nanoseconds.
        let since = |time: SystemTime| time.duration_since(begun).unwrap_or_default().as_secs();
        assert_eq!(since(hop.first_failure.unwrap()), 0, "after {wait} s");
        assert!(since(hop.failure.unwrap().at) + 1 >= wait);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_limit_sheds_is_handled_later_on_its_first_attempt() {
    for inside in [true, false] {
        let broker = memory().await;
        publish(&broker, numbered(50)).await;
        let attempts = Arc::new(AtomicU32::new(0));
        let most = Arc::clone(&attempts);
        let limited = ServiceBuilder::new()
            .layer(LoadShedLayer::new())
            .layer(ConcurrencyLimitLayer::new(2))
            .service(service_fn(move |message: Message| {
                most.fetch_max(message.attempt(), Ordering::Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    Answer::Ok(Outcome::Ack)
                }
            }));
        let worker = Worker::new(broker.clone());
        let worker = if inside {
            let retry = RetryLayer::new(Backoff::immediate());
            worker.subscribe(work(), ServiceBuilder::new().layer(retry).service(limited))
        } else {
            worker.subscribe(work(), limited)
        };
        let (stop, report) = stop_with(worker).await;
        until(async || {
            let depth = broker.depth(&work()).await.unwrap();
            (depth.ready, depth.in_flight, depth.delayed) == (Some(0), Some(0), Some(0))
        })
        .await;
        stop.send(()).unwrap();
        let report = report.await;
        assert_eq!((report.handled, report.dead_lettered, report.retried), (50, 0, 0), "{report}");
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_group_has_one_handler_in_a_worker() {
    let broker = memory().await;
    let service = || service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) });
    let twice = Worker::new(broker.clone())
        .subscribe(work(), service())
        .subscribe(Subscription::topic("events").group("work"), service())
        .subscribe(work().max_deliveries(3), service());
    let error = twice.start().await.expect_err("two handlers of one group");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("\"work\" twice"), "{error}");
    let once = Worker::new(broker)
        .subscribe(Subscription::topic("events").group("one"), service())
        .subscribe(Subscription::topic("events").group("other"), service());
    drop(once.start().await.expect("two groups"));
}
