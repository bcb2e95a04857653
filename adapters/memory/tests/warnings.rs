//! What an operator reads: each at WARN, once, with what it is about.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Backoff, BoxError, Broker, Envelope, Message, Outcome, Outgoing, Queue, RetryLayer,
    RunningWorker, Subscription, Worker, permanent,
};
use anybroker_testkit::Log;
use tower::{ServiceBuilder, service_fn};

fn count(parts: &[&str]) -> usize {
    Log::keep().lines(parts).len()
}

/// A worker whose handler runs `block` on its thread, with a message for it.
async fn working(queue: &'static str, block: fn()) -> RunningWorker {
    Log::keep();
    let broker: Arc<dyn Broker> =
        anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap();
    let handler = service_fn(move |_: Message| async move {
        block();
        Ok::<_, BoxError>(Outcome::Ack)
    });
    let worker = Worker::new(broker.clone()).subscribe(Subscription::queue(queue), handler);
    let running = worker.start().await.unwrap();
    let sent = Outgoing::new(Queue::new(queue), Envelope::new("work", "{}"));
    broker.producer().send(sent).await.unwrap();
    running
}

#[tokio::test]
async fn a_worker_that_is_dropped_is_named() {
    const DROPPED: &str = "a running worker was dropped";
    drop(working("left-alone", || ()).await);
    assert_eq!(count(&["left-alone", DROPPED]), 1);
    working("waited-for", || ()).await.run_until(async {}).await.unwrap();
    assert_eq!(count(&["waited-for", DROPPED]), 0);
}

#[tokio::test]
async fn a_handler_that_blocks_its_thread_is_named_while_it_does() {
    let running = working("standing", || {
        // Longer than two looks a second apart.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(count(&["standing", "blocks its thread for over a second"]), 1);
    });
    let report = running.await.run_until(tokio::time::sleep(Duration::from_millis(50))).await;
    assert_eq!(report.unwrap().handled, 1, "the line was there");
}

#[tokio::test]
async fn what_is_given_up_is_named_and_counted_where_it_floods() {
    Log::keep();
    let broker = anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap();
    let handler = service_fn(|message: Message| async move {
        match message.attempt() {
            1 => Err("no answer".into()),
            _ => Err::<Outcome, BoxError>(permanent("the order has no items")),
        }
    });
    let retry = RetryLayer::new(Backoff::fixed(Duration::from_millis(10)));
    let handler = ServiceBuilder::new().layer(retry).service(handler);
    let running =
        Worker::new(broker.clone()).loops(1).subscribe(Subscription::queue("flooded"), handler);
    let running = running.start().await.unwrap();
    for number in 0..100 {
        let envelope = Envelope::new("order", "card 4111").with_id(format!("flood-{number}"));
        broker.producer().send(Outgoing::new(Queue::new("flooded"), envelope)).await.unwrap();
    }
    let all_are_given_up = async {
        let subscription = Subscription::queue("flooded");
        while broker.depth(&subscription).await.unwrap().dead_lettered != Some(100) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let report = running.run_until(all_are_given_up).await.unwrap();
    assert_eq!((report.retried, report.dead_lettered), (100, 100));
    assert_eq!(count(&["flood-", "a message is tried again"]), 100);
    assert_eq!(
        count(&["id=\"flood-7\" type=\"order\" attempt=1 after=10ms", "no answer"]),
        1,
        "with its id, its type and why"
    );
    assert_eq!(count(&["flood-", "a message is given up"]), 20);
    assert_eq!(count(&["subscription=flooded", "the order has no items"]), 20);
    assert_eq!(count(&["count=80", "more messages were given up"]), 1);
    assert_eq!(count(&["", "card 4111"]), 0, "no payload");
}
