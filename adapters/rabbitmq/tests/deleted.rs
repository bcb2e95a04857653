//! What somebody deletes is made again with all its parts, and what is published afterwards is
//! handled.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Destination, Envelope, Outcome, Outgoing, Queue, Subscription, Topic,
};
use anybroker_rabbitmq::RabbitmqBroker;
use anybroker_rabbitmq::lapin::Channel;
use anybroker_rabbitmq::lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use support::{ack, connect, delete, receive, send, servers, unique};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(20);

fn message(id: impl Into<String>) -> Envelope {
    Envelope::new("t", "x").with_id(id)
}

/// Publishes until it is confirmed.
async fn publish(broker: &RabbitmqBroker, to: &Destination, id: &str) {
    let end = Instant::now() + PATIENCE;
    while let Err(error) = broker.producer().send(Outgoing::new(to.clone(), message(id))).await {
        assert!(Instant::now() < end, "{id}: {error:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn all_come(consumer: &mut Box<dyn Consumer>, ids: &[&str], what: &str) {
    let mut missing: BTreeSet<_> = ids.iter().map(ToString::to_string).collect();
    let end = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        assert!(Instant::now() < end, "{what}: {missing:?} are lost");
        if let Some(delivery) = support::try_receive(consumer, Duration::from_secs(1)).await {
            missing.remove(&delivery.envelope().id);
            ack(delivery).await;
        }
    }
}

async fn delete_queue(channel: &Channel, name: &str) {
    let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default()).await;
    deleted.expect("it is deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_gets_all_its_groups_back() {
    for (server, url) in servers() {
        let what = server;
        let (broker, other) = (connect(&url).await, connect(&url).await);
        let topic = Topic::new(unique("t"));
        let destination = Destination::from(topic.clone());
        let [running, stopped] =
            ["running", "stopped"].map(|group| Subscription::topic(topic.clone()).group(group));
        broker.declare(&stopped).await.expect("a group");
        let mut consumer = broker.consume(&running, 10).await.expect("a consumer");
        publish(&other, &destination, "before").await;
        all_come(&mut consumer, &["before"], what).await;
        let channel = broker.channel().await.expect("a channel");
        let name = destination.name();
        let deleted = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default());
        deleted.await.expect("it is deleted");
        publish(&other, &destination, "after").await;
        publish(&other, &destination, "later").await;
        all_come(&mut consumer, &["after", "later"], what).await;
        let mut stopped_consumer = other.consume(&stopped, 10).await.expect("a consumer");
        all_come(&mut stopped_consumer, &["before", "after", "later"], what).await;
        drop((consumer, stopped_consumer));
        delete(&broker, &running).await;
        delete(&broker, &stopped).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_deleted_come_back_with_what_stands_beside_them() {
    for (server, url) in servers() {
        let (broker, other) = (connect(&url).await, connect(&url).await);
        let name = unique("q");
        let subscription = Subscription::queue(Queue::new(name.clone()));
        let destination = subscription.destination();
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        send(&other, destination.clone(), message("delayed")).await;
        let after = Duration::from_millis(1100);
        let delivery = receive(&mut consumer).await;
        delivery.settle(Outcome::Retry { after }).await.expect("it waits in a delay queue");
        let delivery = receive(&mut consumer).await;
        delivery.settle(Outcome::Ack).await.expect("a settlement");

        let channel = broker.channel().await.expect("a channel");
        for queue in [format!("{name}--dlq"), format!("{name}--delay-1s"), name.clone()] {
            delete_queue(&channel, &queue).await;
        }
        for id in ["retried", "dead", "plain"] {
            // No error: where the queue is, is known to be wrong before the message is stored.
            send(&other, destination.clone(), message(id)).await;
        }
        let (mut retried, mut dead, mut plain) = (0, 0, 0);
        let end = Instant::now() + PATIENCE;
        while (retried, dead, plain) != (2, 1, 1) {
            assert!(Instant::now() < end, "{server}: {retried} {dead} {plain}");
            let next = support::try_receive(&mut consumer, Duration::from_secs(1)).await;
            let Some(delivery) = next else { continue };
            let (id, attempt) = (delivery.envelope().id.clone(), delivery.attempt());
            let (count, outcome) = match (id.as_str(), attempt) {
                ("retried", 1) => (&mut retried, Outcome::Retry { after }),
                ("retried", _) => (&mut retried, Outcome::Ack),
                ("dead", _) => (&mut dead, Outcome::dead_letter("permanent", "no")),
                _ => (&mut plain, Outcome::Ack),
            };
            delivery.settle(outcome).await.expect("what it needs is made again");
            *count += 1;
        }
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!(depth.dead_lettered, Some(1), "{server}");
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_flushed_where_nothing_was_declared_before() {
    for (server, url) in servers() {
        let (broker, other) = (connect(&url).await, connect(&url).await);
        let subscription = Subscription::queue(unique("flushed"));
        let producer = broker.producer();
        let sends: Vec<_> = (0..1000)
            .map(|number| {
                let to = subscription.destination().clone();
                producer.send(Outgoing::new(to, message(number.to_string())))
            })
            .collect();
        broker.close().await.expect("it closes");
        for sent in sends {
            sent.await.expect("it was accepted");
        }
        let depth = other.depth(&subscription).await.expect("a depth");
        assert_eq!(depth.ready, Some(1000), "{server}");
        delete(&other, &subscription).await;
    }
}
