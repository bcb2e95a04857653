//! A server whose answers take long, as over a long way.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, Queue, Subscription};
use anybroker_testkit::Proxy;
use futures_util::future::join_all;
use support::{ack, connect, message, receive, send, servers, try_receive, unique};

const SECOND: Duration = Duration::from_secs(1);
const LATENCY: Duration = Duration::from_millis(250);
/// Shorter than what a consumer asks in turn takes, longer than one answer.
const LEASE: Duration = Duration::from_secs(3);
const MESSAGES: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn slow_answers_cost_no_lease() {
    join_all(servers().into_iter().map(|url| slow(url, Queue::new(unique("slow"))))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_answers_cost_no_ordered_partition() {
    let queue = || Queue::new(unique("slow")).ordered().partitions(6);
    join_all(servers().into_iter().map(|url| slow(url, queue()))).await;
}

/// Takes one message after the other, for longer than a lease in all, while the others wait in the
/// consumer: each has to come once, for the first time.
async fn slow(url: String, queue: Queue) {
    let (proxy, direct) = (Proxy::start(&url).await.expect("a proxy"), connect(&url).await);
    let subscription = Subscription::queue(queue.clone()).lease(LEASE);
    let broker = connect(proxy.url()).await;
    let mut consumer = broker.consume(&subscription, MESSAGES).await.expect("a consumer");
    for number in 0..MESSAGES {
        let message = message(number.to_string()).with_key(format!("k{}", number % 12));
        send(&direct, queue.clone(), message).await;
    }
    let first = receive(&mut consumer).await;
    proxy.slow(LATENCY);
    ack(first).await;
    for _ in 1..MESSAGES {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1, "{url}: {}", delivery.envelope().id);
        tokio::time::sleep(LEASE / 10).await;
        ack(delivery).await;
    }
    proxy.pass();
    let another = try_receive(&mut consumer, LEASE + SECOND).await;
    assert!(another.is_none(), "{url}: {another:?}");
    drop(consumer);
    direct.close().await.expect("a close");
    broker.close().await.expect("a close");
}
