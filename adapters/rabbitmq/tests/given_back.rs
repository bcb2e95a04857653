//! What comes back from an ordered queue although its process lives counts no attempt, unless a
//! handler saw it.

mod support;

use std::ops::Range;
use std::time::Duration;

use anybroker_core::{Broker, Consumer, Delivery, Envelope, Outcome, Queue, Subscription};
use support::{ack, connect, delete, receive, send, servers, unique};

const AT_ONCE: Outcome = Outcome::Release { after: Duration::ZERO };

fn message(number: usize) -> Envelope {
    Envelope::new("t", "x").with_id(number.to_string()).with_key("k")
}

/// Receives these in their order, each at this attempt.
async fn take(
    consumer: &mut Box<dyn Consumer>,
    numbers: Range<usize>,
    attempt: u32,
    what: &str,
) -> Vec<Delivery> {
    let mut taken = Vec::new();
    for number in numbers {
        let delivery = receive(consumer).await;
        assert_eq!(delivery.envelope().id, number.to_string(), "{what}");
        assert_eq!(delivery.attempt(), attempt, "{what}: {number}");
        taken.push(delivery);
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_handler_saw_counts_no_attempt() {
    for (server, url) in servers() {
        let queue = Queue::new(unique("given-back")).ordered();
        let subscription = Subscription::queue(queue.clone());
        let (broker, other) = (connect(&url).await, connect(&url).await);
        let mut consumer = broker.consume(&subscription, 30).await.expect("a consumer");
        for number in 0..10 {
            send(&other, queue.clone(), message(number)).await;
        }
        // To keep its place, what is given back comes again on another channel, and with it all
        // that came behind it.
        for delivery in take(&mut consumer, 0..10, 1, server).await {
            delivery.settle(AT_ONCE).await.expect("it is given back");
        }
        for delivery in take(&mut consumer, 0..3, 1, server).await {
            ack(delivery).await;
        }
        // Closing gives back what waits.
        consumer.close().await.expect("it closes");
        let mut consumer = other.consume(&subscription, 30).await.expect("a consumer");
        for delivery in take(&mut consumer, 3..10, 1, server).await {
            ack(delivery).await;
        }
        // What is dropped may have been handled.
        for number in 10..12 {
            send(&broker, queue.clone(), message(number)).await;
        }
        drop(take(&mut consumer, 10..12, 1, server).await);
        for delivery in take(&mut consumer, 10..12, 2, server).await {
            ack(delivery).await;
        }
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}
