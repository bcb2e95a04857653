//! A connection has some two thousand numbers for its channels, and goes on when they are used up.

mod support;

use anybroker_core::{Broker, Envelope, ErrorKind, Outgoing, Queue, Subscription, Topic};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use support::{ack, connect, receive, send, servers, unique};

/// More than a connection has channels (`channel_max`, 2,047 unless set).
const MANY: usize = 2_200;

#[tokio::test(flavor = "multi_thread")]
async fn depths_can_be_asked_for_ever() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(Queue::new(unique("asked")));
        broker.declare(&subscription).await.expect("a group");
        // Each asks for the queue's delay tiers, which do not exist.
        for _ in 0..MANY / 20 {
            let depth = broker.depth(&subscription).await.expect("a depth");
            assert_eq!((depth.ready, depth.delayed), (Some(0), Some(0)), "{server}");
        }
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        send(&broker, subscription.destination().clone(), Envelope::new("t", "x")).await;
        ack(receive(&mut consumer).await).await;
        broker.close().await.expect("it closes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_the_server_closed_leave_others_to_open() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(Queue::new(unique("closed")));
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        for number in 0..MANY {
            let channel = broker.channel().await;
            let channel = channel.unwrap_or_else(|error| panic!("{server}: {number}: {error}"));
            let absent = channel.queue_declare("absent".into(), passive, FieldTable::default());
            absent.await.expect_err("it does not exist");
        }
        let absent = Subscription::queue(Queue::new(unique("absent")));
        let error = broker.depth(&absent).await.expect_err("it does not exist");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        send(&broker, subscription.destination().clone(), Envelope::new("t", "x")).await;
        ack(receive(&mut consumer).await).await;
        let mut other = broker.consume(&subscription, 10).await.expect("a consumer");
        consumer.close().await.expect("it closes");
        send(&broker, subscription.destination().clone(), Envelope::new("t", "x")).await;
        ack(receive(&mut other).await).await;
        broker.close().await.expect("it closes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_go_on_however_many_were_refused() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(Queue::new(unique("refused")));
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let other = connect(&format!("{url}/?declare=off")).await;
        let publisher = other.producer();
        let absent = Topic::new(unique("absent"));
        // Twice as many: a number that is used up answers once more.
        for number in 0..2 * MANY {
            let refused = publisher.send(Outgoing::new(absent.clone(), Envelope::new("t", "x")));
            let error = refused.await.expect_err("there is no such exchange");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{server}: {number}: {error}");
        }
        send(&other, subscription.destination().clone(), Envelope::new("t", "x")).await;
        ack(receive(&mut consumer).await).await;
        other.close().await.expect("it closes");
        broker.close().await.expect("it closes");
    }
}
