//! Publishing and consuming, on each version.

mod support;

use std::time::{Duration, SystemTime};

use anybroker_core::{Broker, Envelope, Outcome, Outgoing, Queue, Subscription, Topic};
use support::{ack, connect, delete, receive, send, servers, try_receive, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_keeps_what_was_sent_before_its_first_consumer() {
    for (_, url) in servers() {
        let broker = connect(&url).await;
        let name = unique("kept");
        let envelope = Envelope::new("order.place", vec![0, 159, 146, 150, 255])
            .with_key("käse")
            .with_id("a".repeat(255))
            .with_content_type(format!("text/{}", "x".repeat(250)))
            .with_expires(SystemTime::now() + Duration::from_hours(1))
            .with_correlation_id("c")
            .with_causation_id("d")
            .with_header("tenant", "Ünicøde")
            .expect("a header");
        send(&broker, Queue::new(name.clone()), envelope.clone()).await;
        let subscription = Subscription::queue(name);
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let delivery = receive(&mut consumer).await;
        assert_eq!(**delivery.envelope(), envelope);
        assert_eq!(delivery.attempt(), 1);
        ack(delivery).await;
        consumer.close().await.expect("a closed consumer");
        assert_eq!(broker.depth(&subscription).await.expect("a depth").ready, Some(0));
        delete(&broker, &subscription).await;
        broker.close().await.expect("a closed broker");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_group_of_a_topic_has_its_own_copy() {
    for (_, url) in servers() {
        let broker = connect(&url).await;
        let name = unique("topic");
        let groups = ["email", "audit"].map(|group| Subscription::topic(name.clone()).group(group));
        for group in &groups {
            broker.declare(group).await.expect("a group");
        }
        send(&broker, Topic::new(name.clone()), Envelope::new("order.created", "1")).await;
        for group in &groups {
            let mut consumer = broker.consume(group, 10).await.expect("a consumer");
            ack(receive(&mut consumer).await).await;
            // Running, it would declare again what is being deleted.
            consumer.close().await.expect("it closes");
        }
        for group in &groups {
            delete(&broker, group).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_count_retries_and_crashes_but_no_releases() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("attempts"));
        send(&broker, subscription.destination().clone(), Envelope::new("t", "1")).await;
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        for (expected, outcome) in [
            (1, Some(Outcome::Release { after: Duration::ZERO })),
            (1, Some(Outcome::Release { after: Duration::ZERO })),
            (1, Some(Outcome::Retry { after: Duration::ZERO })),
            (2, Some(Outcome::Release { after: Duration::from_millis(1) })),
            (2, None),
            (3, None),
            (4, Some(Outcome::Retry { after: Duration::from_millis(1500) })),
            (5, Some(Outcome::Release { after: Duration::ZERO })),
            (5, Some(Outcome::Ack)),
        ] {
            let delivery = receive(&mut consumer).await;
            assert_eq!(delivery.attempt(), expected, "{server} {outcome:?}");
            match outcome {
                Some(outcome) => delivery.settle(outcome).await.expect("a settlement"),
                None => drop(delivery),
            }
        }
        assert!(try_receive(&mut consumer, Duration::from_millis(300)).await.is_none());
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_publish_comes_through_a_tier_to_its_queue() {
    for (_, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("delayed"));
        let started = std::time::Instant::now();
        let outgoing = Outgoing::new(subscription.destination().clone(), Envelope::new("t", "1"))
            .with_delay(Duration::from_secs(7));
        broker.producer().send(outgoing).await.expect("a publish");
        assert_eq!(broker.depth(&subscription).await.expect("a depth").delayed, Some(1));
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let delivery = receive(&mut consumer).await;
        // Of 4 s, or a shorter one if it took long to make that: the worker waits for the rest.
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert!(delivery.hop().not_before.is_some());
        assert_eq!(delivery.attempt(), 1);
        assert_eq!(delivery.envelope().headers.len(), 0, "{:?}", delivery.envelope());
        ack(delivery).await;
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}
