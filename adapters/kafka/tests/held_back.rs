//! A partition that waits, beside one that does not.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, Envelope, Outcome, Outgoing, Queue, Subscription};
use anybroker_kafka::KafkaBroker;
use support::{ack, connect, id, receive, unique};

/// Keys that go to different ones of two partitions.
const WAITING: &str = "a";
const FREE: &str = "d";

async fn send_keyed(broker: &KafkaBroker, subscription: &Subscription, key: &str, count: usize) {
    let producer = broker.producer();
    let sends: Vec<_> = (0..count)
        .map(|number| {
            let envelope = Envelope::new("number", "{}").with_id(format!("{key}{number}"));
            let to = subscription.destination().clone();
            producer.send(Outgoing::new(to, envelope.with_key(key)))
        })
        .collect();
    for send in sends {
        send.await.expect("a confirmed publish");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_waits_for_a_retry_does_not_slow_down_another() {
    const COUNT: usize = 300;
    const WAIT: Duration = Duration::from_secs(8);
    let broker = connect().await;
    let subscription = Subscription::queue(Queue::new(unique("held-back")).ordered().partitions(2));
    let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
    send_keyed(&broker, &subscription, WAITING, COUNT).await;
    let first = receive(&mut consumer).await;
    assert_eq!(id(&first), format!("{WAITING}0"));
    first.settle(Outcome::Release { after: WAIT }).await.expect("a settlement");
    send_keyed(&broker, &subscription, FREE, COUNT).await;
    // One for each glance of a reader that has no room would take 30 s, and the retry come between.
    for key in [FREE, WAITING] {
        for number in 0..COUNT {
            let delivery = receive(&mut consumer).await;
            assert_eq!(id(&delivery), format!("{key}{number}"));
            ack(delivery).await;
        }
    }
}
