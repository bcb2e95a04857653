//! Where others declare: what a settlement needs is missing from the beginning.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    Backoff, Broker, Envelope, ErrorKind, Message, Outcome, Queue, RetryLayer, Subscription, Worker,
};
use anybroker_rabbitmq::lapin::options::QueueDeleteOptions;
use support::{connect, delete, receive, send, servers, unique};
use tokio::time::{Instant, sleep};
use tower::{ServiceBuilder, service_fn};

const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn retries_without_delay_queues_are_counted_and_end() {
    for (server, url) in servers() {
        for declare in ["verify", "off"] {
            let (admin, queue) = (connect(&url).await, Queue::new(unique("no-tiers")));
            let subscription = Subscription::queue(queue.clone());
            admin.declare(&subscription).await.expect("a queue without delay queues");
            for id in ["a", "b", "c"] {
                send(&admin, queue.clone(), Envelope::new("t", "x").with_id(id)).await;
            }
            let broker = connect(&format!("{url}?declare={declare}")).await;
            let calls = Arc::<Mutex<HashMap<String, Vec<(u32, Instant)>>>>::default();
            let handler = {
                let calls = Arc::clone(&calls);
                service_fn(move |message: Message| {
                    let id = message.envelope().id.clone();
                    let call = (message.attempt(), Instant::now());
                    calls.lock().expect("no panic").entry(id).or_default().push(call);
                    async move { Err::<Outcome, _>("it fails") }
                })
            };
            let wait = Duration::from_secs(6);
            let retry = RetryLayer::new(Backoff::fixed(wait)).max_attempts(2);
            let handler = ServiceBuilder::new().layer(retry).service(handler);
            let worker = Worker::new(broker).subscribe(subscription.clone(), handler);
            let worker = worker.start().await.expect("a worker");
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let worker = tokio::spawn(worker.run_until(stopped));
            let end = Instant::now() + PATIENCE;
            loop {
                let depth = admin.depth(&subscription).await.expect("a depth");
                if depth.dead_lettered == Some(3) {
                    break;
                }
                assert!(Instant::now() < end, "{server}, {declare}: {:?}", calls.lock().unwrap());
                sleep(Duration::from_millis(200)).await;
            }
            drop(stop);
            worker.await.expect("no panic").expect("a clean end");
            let calls = std::mem::take(&mut *calls.lock().expect("no panic"));
            for (id, calls) in &calls {
                let attempts: Vec<_> = calls.iter().map(|(attempt, _)| *attempt).collect();
                assert_eq!(attempts, [1, 2], "{server}, {declare}: {id}");
                assert!(calls[1].1 - calls[0].1 >= wait, "{server}, {declare}: {id} was early");
            }
            delete(&admin, &subscription).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_its_dead_letter_queue_is_refused() {
    for (server, url) in servers() {
        for declare in ["verify", "off"] {
            let (admin, name) = (connect(&url).await, unique("no-dlq"));
            let subscription = Subscription::queue(name.clone());
            admin.declare(&subscription).await.expect("a queue");
            let dead_letters = format!("{name}--dlq");
            let channel = admin.channel().await.expect("a channel");
            let options = QueueDeleteOptions::default();
            channel.queue_delete(dead_letters.as_str().into(), options).await.expect("deleted");
            let broker = connect(&format!("{url}?declare={declare}")).await;
            let error = broker.consume(&subscription, 5).await.expect_err("something is missing");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{server}, {declare}: {error}");
            assert!(error.to_string().contains(&dead_letters), "{server}, {declare}: {error}");
            delete(&admin, &subscription).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_group_without_a_queue_of_runs_counts_what_comes_back() {
    for (server, url) in servers() {
        for declare in ["verify", "off"] {
            let (admin, queue) = (connect(&url).await, Queue::new(unique("no-runs")).ordered());
            let subscription = Subscription::queue(queue.clone());
            admin.declare(&subscription).await.expect("a queue");
            send(&admin, queue, Envelope::new("t", "x").with_key("k")).await;
            let broker = connect(&format!("{url}?declare={declare}")).await;
            let mut consumer = broker.consume(&subscription, 5).await.expect("a consumer");
            for attempt in 1..=4 {
                let delivery = receive(&mut consumer).await;
                assert_eq!(delivery.attempt(), attempt, "{server}, {declare}");
                // It may have ended its handler.
                drop(delivery);
            }
            drop(consumer);
            delete(&admin, &subscription).await;
        }
    }
}
