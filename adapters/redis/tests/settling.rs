//! Settlements in large lots, and those whose group goes away underneath.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Delivery, ErrorKind, Outcome, Outgoing, Queue, Subscription,
};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::cmd;
use support::{ack, connect, message, receive, run, servers, try_receive, unique};

async fn send_all(broker: &RedisBroker, queue: &Queue, count: usize, payload: usize) {
    let producer = broker.producer();
    let sends: Vec<_> = (0..count)
        .map(|number| {
            let mut envelope = message(number.to_string());
            envelope.payload = vec![b'x'; payload].into();
            producer.send(Outgoing::new(queue.clone(), envelope))
        })
        .collect();
    for send in sends {
        send.await.expect("a confirmed publish");
    }
}

async fn receive_all(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(receive(consumer).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_call_can_settle_is_settled() {
    // More ids than a script may hand over at once, and more bytes than one is given.
    for (count, payload, outcome) in [
        (2500, 10, Outcome::Ack),
        (2500, 10, Outcome::Release { after: Duration::ZERO }),
        (60, 100_000, Outcome::dead_letter("test", "large")),
    ] {
        for url in servers() {
            let (broker, queue) = (connect(&url).await, Queue::new(unique("lot")));
            let subscription = Subscription::queue(queue.clone());
            send_all(&broker, &queue, count, payload).await;
            let mut consumer = broker.consume(&subscription, count).await.expect("a consumer");
            let all = receive_all(&mut consumer, count).await;
            let settling: Vec<_> =
                all.into_iter().map(|delivery| delivery.settle(outcome.clone())).collect();
            for settlement in settling {
                settlement.await.expect("a settlement");
            }
            if matches!(outcome, Outcome::Release { .. }) {
                for delivery in receive_all(&mut consumer, count).await {
                    assert_eq!(delivery.attempt(), 1, "{url}");
                    drop(delivery.settle(Outcome::Ack));
                }
            }
            consumer.close().await.expect("a close");
            let depth = broker.depth(&subscription).await.expect("a depth");
            assert_eq!((depth.ready, depth.in_flight), (Some(0), Some(0)), "{url} {outcome:?}");
            let dead = if matches!(outcome, Outcome::DeadLetter { .. }) { 60 } else { 0 };
            assert_eq!(depth.dead_lettered, Some(dead), "{url} {outcome:?}");
            broker.close().await.expect("a close");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_settled_when_its_group_is_deleted_comes_again() {
    const COUNT: usize = 200;
    for url in servers() {
        let (broker, name) = (connect(&url).await, unique("deleted"));
        let queue = Queue::new(name.clone());
        send_all(&broker, &queue, COUNT, 10).await;
        let subscription = Subscription::queue(queue);
        let mut consumer = broker.consume(&subscription, COUNT).await.expect("a consumer");
        let mut all = receive_all(&mut consumer, COUNT).await;
        let late = all.split_off(COUNT / 2);
        let settle = |all: Vec<Delivery>| -> Vec<_> {
            let settle = |delivery: Delivery| {
                (delivery.envelope().id.clone(), delivery.settle(Outcome::Ack))
            };
            all.into_iter().map(settle).collect()
        };
        let mut settling = settle(all);
        let mut destroy = cmd("XGROUP");
        let deleted: u8 = run(&broker, destroy.arg("DESTROY").arg(&name).arg(&name)).await;
        assert_eq!(deleted, 1, "{url}");
        settling.extend(settle(late));
        let mut missing = HashSet::new();
        for (id, settlement) in settling {
            if let Err(error) = settlement.await {
                assert_eq!(error.kind(), ErrorKind::StaleDelivery, "{url}: {error}");
                missing.insert(id);
            }
        }
        assert!(missing.len() >= COUNT / 2, "{url}: {}", missing.len());
        while !missing.is_empty() {
            let delivery = receive(&mut consumer).await;
            missing.remove(&delivery.envelope().id);
            ack(delivery).await;
        }
        while let Some(more) = try_receive(&mut consumer, Duration::from_millis(300)).await {
            ack(more).await;
        }
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!(depth.in_flight, Some(0), "{url}");
        broker.close().await.expect("a close");
    }
}
