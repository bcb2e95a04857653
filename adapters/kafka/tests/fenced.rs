//! A broker that was fenced answers that there are no brokers, and is back a moment later.

mod support;

use std::time::{Duration, Instant};

use anybroker_core::{
    Broker, BrokerUrl, Destination, Envelope, Outcome, Outgoing, Queue, Subscription,
};
use anybroker_kafka::KafkaBroker;
use anybroker_testkit::brokers::Kafka;
use support::{ack, id, next, receive};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_mins(1);

/// Publishes it until it is stored.
async fn store(broker: &KafkaBroker, to: impl Into<Destination>, id: &str) {
    let (to, begun) = (to.into(), Instant::now());
    let envelope = Envelope::new("t", "{}").with_id(id);
    while let Err(error) = broker.producer().send(Outgoing::new(to.clone(), envelope.clone())).await
    {
        assert!(begun.elapsed() < PATIENCE, "{to:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_fenced_is_found_again() {
    let kafka = Kafka::new()
        .config("broker.session.timeout.ms=3000")
        .config("broker.heartbeat.interval.ms=1000");
    let server = tokio::task::spawn_blocking(move || kafka.launch()).await.expect("no panic");
    let server = server.expect("a server");
    let url: BrokerUrl = server.url().parse().expect("a URL");
    let builder = KafkaBroker::builder().url(url).expect("known options").partitions(1);
    // Each handle asks at the moment at which there is no broker.
    let builder = builder.native_option("topic.metadata.refresh.interval.ms", "50");
    let builder = builder.publish_timeout(Duration::from_secs(10));
    let broker = builder.session_timeout(Duration::from_secs(6)).connect().await;
    let broker = broker.expect("a connection");
    let queue = Queue::new("handled");
    let subscription = Subscription::queue(queue.clone());
    store(&broker, queue.clone(), "first").await;
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    ack(receive(&mut consumer).await).await;
    for round in 0..3 {
        server.pause().expect("a pause");
        sleep(Duration::from_secs(5)).await;
        server.resume().expect("its end");
        sleep(Duration::from_secs(2)).await;
        store(&broker, Queue::new(format!("new-{round}")), "new").await;
        let last = format!("last-{round}");
        store(&broker, queue.clone(), &last).await;
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "{last} was not received");
            match next(&mut consumer, Duration::from_secs(20)).await {
                Some(Ok(delivery)) => {
                    let came = id(&delivery);
                    // What is no longer its own comes again.
                    let _ = delivery.settle(Outcome::Ack).await;
                    if came == last {
                        break;
                    }
                }
                // A worker would open another one.
                Some(Err(_)) => {
                    consumer = broker.consume(&subscription, 10).await.expect("another consumer");
                }
                None => {}
            }
        }
        eprintln!("{round} {:?}", begun.elapsed());
    }
}
