//! Streams that somebody else made, and what looking leaves behind.

mod support;

use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, DeadLetterFilter, Destination, ErrorKind, Outcome, Outgoing, Queue, Redrive,
    Subscription, Topic,
};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::cmd;
use support::{ack_all, connect, message, receive, run, send, servers, unique};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

async fn length(broker: &RedisBroker, key: &str) -> usize {
    run(broker, cmd("XLEN").arg(key)).await
}

async fn publish(broker: &RedisBroker, to: impl Into<Destination>, count: usize) {
    let (to, producer) = (to.into(), broker.producer());
    let outgoing = |id: usize| Outgoing::new(to.clone(), message(id.to_string()));
    let sends: Vec<_> = (0..count).map(|id| producer.send(outgoing(id))).collect();
    for sent in sends {
        sent.await.expect("a confirmed publish");
    }
}

/// Acknowledges so many, without waiting for one before the next is received.
async fn handle(consumer: &mut Box<dyn Consumer>, count: usize) {
    let mut settled = Vec::new();
    for _ in 0..count {
        settled.push(receive(consumer).await.settle(Outcome::Ack));
    }
    for settled in settled {
        settled.await.expect("a settlement");
    }
}

/// Waits until the stream is shorter.
async fn trimmed(broker: &RedisBroker, stream: &str, than: usize) {
    let end = Instant::now() + 20 * SECOND;
    while length(broker, stream).await >= than {
        assert!(Instant::now() < end, "{stream} is as long as before");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Handles so many messages of a stream of ours; returns when they were removed.
async fn handle_some_of_ours(broker: &RedisBroker) {
    let name = unique("ours");
    publish(broker, Queue::new(name.clone()), 300).await;
    let subscription = Subscription::queue(name.clone());
    let mut consumer = broker.consume(&subscription, 100).await.expect("a consumer");
    handle(&mut consumer, 300).await;
    trimmed(broker, &name, 300).await;
    consumer.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_somebody_else_is_not_emptied_unless_asked() {
    for url in servers() {
        let plain = connect(&url).await;
        for option in ["declare=create", "declare=verify", "declare=off"] {
            let name = format!("Events_{}", unique("of-others"));
            let group = || Subscription::topic(Topic::native(name.clone())).group("audit");
            let _: String = run(
                &plain,
                cmd("XGROUP").arg("CREATE").arg(&name).arg("audit").arg("0").arg("MKSTREAM"),
            )
            .await;
            let retry = format!("{{{name}}}--audit--retry");
            let _: String = run(
                &plain,
                cmd("XGROUP").arg("CREATE").arg(&retry).arg("audit").arg("0").arg("MKSTREAM"),
            )
            .await;
            publish(&plain, Topic::native(name.clone()), 1000).await;
            let broker = connect(&format!("{url}?{option}")).await;
            let mut consumer = broker.consume(&group(), 100).await.expect("a consumer");
            handle(&mut consumer, 1000).await;
            handle_some_of_ours(&plain).await;
            assert_eq!(length(&plain, &name).await, 1000, "{url}, {option}");
            // Not by another process either, nor by one that starts later.
            consumer.close().await.expect("a close");
            broker.close().await.expect("a close");
            let broker = connect(&url).await;
            let mut consumer = broker.consume(&group(), 100).await.expect("a consumer");
            send(&broker, Topic::native(name.clone()), message("m")).await;
            ack_all(&mut consumer, 1).await;
            handle_some_of_ours(&plain).await;
            assert_eq!(length(&plain, &name).await, 1001, "{url}, {option}");
            consumer.close().await.expect("a close");
            broker.close().await.expect("a close");

            let broker = connect(&format!("{url}?{option}&trim-foreign=yes")).await;
            let consumer = broker.consume(&group(), 100).await.expect("a consumer");
            trimmed(&plain, &name, 1001).await;
            consumer.close().await.expect("a close");
            broker.close().await.expect("a close");
        }
        plain.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_ours_is_trimmed_by_whoever_consumes_it() {
    for url in servers() {
        let plain = connect(&url).await;
        let name = unique("made");
        // Made by a publisher before there was a group, and consumed by a process that may not create.
        let topic = || Topic::new(name.clone());
        send(&plain, topic(), message("first")).await;
        let subscription = Subscription::topic(topic()).group("audit");
        plain.declare(&subscription).await.expect("a group");
        publish(&plain, topic(), 300).await;
        let broker = connect(&format!("{url}?declare=off")).await;
        let mut consumer = broker.consume(&subscription, 100).await.expect("a consumer");
        handle(&mut consumer, 300).await;
        trimmed(&plain, &name, 301).await;
        consumer.close().await.expect("a close");
        broker.close().await.expect("a close");
        plain.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_what_does_not_exist_creates_nothing() {
    for url in servers() {
        let broker = connect(&url).await;
        let (queue, topic) = (unique("nothing"), unique("nothing"));
        send(&broker, Topic::new(topic.clone()), message("m")).await;
        for subscription in [
            Subscription::queue(queue.clone()),
            Subscription::queue(Queue::new(queue.clone()).ordered().partitions(2)),
            Subscription::topic(topic.clone()).group("nobody"),
        ] {
            let all = DeadLetterFilter::all();
            let errors = [
                broker.depth(&subscription).await.map(drop),
                broker.dead_letters(&subscription, &all, 10).await.map(drop),
                broker.redrive(&subscription, &Redrive::all()).await.map(drop),
                broker.purge_dead_letters(&subscription).await.map(drop),
            ];
            for looked in errors {
                let error = looked.expect_err("there is nothing to look at");
                assert_eq!(error.kind(), ErrorKind::NotFound, "{url}: {error}");
            }
        }
        let keys = async |name: &str| {
            let keys: Vec<String> = run(&broker, cmd("KEYS").arg(format!("*{name}*"))).await;
            keys.len()
        };
        assert_eq!(keys(&queue).await, 0, "{url}");
        assert_eq!(keys(&topic).await, 2, "{url}: the stream and how it was declared");
        let groups: Vec<anybroker_redis::redis::Value> =
            run(&broker, cmd("XINFO").arg("GROUPS").arg(&topic)).await;
        assert_eq!(groups.len(), 0, "{url}");
        broker.close().await.expect("a close");
    }
}
