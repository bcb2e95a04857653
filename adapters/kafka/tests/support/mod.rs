//! What the tests share: the server, names of their own, and a few steps.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, BrokerUrl, Consumer, Delivery, Depth, Destination, Envelope, Error, Outcome, Outgoing,
    Subscription,
};
use anybroker_kafka::{KafkaBroker, KafkaBuilder};

/// The server's URL.
pub(crate) fn server() -> String {
    std::env::var("ANYBROKER_KAFKA_URL").unwrap_or_else(|error| {
        panic!("ANYBROKER_KAFKA_URL: {error}: run `cargo xtask test`, which starts the server")
    })
}

/// Something that nobody else on the server is called.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{:08x}", fastrand::u32(..))
}

pub(crate) fn builder() -> KafkaBuilder {
    let url: BrokerUrl = server().parse().expect("a URL");
    KafkaBroker::builder().url(url).expect("known options").session_timeout(Duration::from_secs(6))
}

pub(crate) async fn connect() -> Arc<KafkaBroker> {
    builder().connect().await.expect("a connection")
}

/// A connection whose topics have one partition.
pub(crate) async fn connect_single() -> Arc<KafkaBroker> {
    builder().partitions(1).connect().await.expect("a connection")
}

pub(crate) async fn send(broker: &KafkaBroker, to: impl Into<Destination>, envelope: Envelope) {
    broker.producer().send(Outgoing::new(to, envelope)).await.expect("a confirmed publish");
}

/// Publishes messages `0`, `1` and so on.
pub(crate) async fn send_numbers(broker: &KafkaBroker, to: &Destination, count: usize) {
    let producer = broker.producer();
    let sends: Vec<_> = (0..count)
        .map(|number| {
            let envelope = Envelope::new("number", "{}").with_id(number.to_string());
            producer.send(Outgoing::new(to.clone(), envelope))
        })
        .collect();
    for send in sends {
        send.await.expect("a confirmed publish");
    }
}

/// The next delivery, within twenty seconds.
pub(crate) async fn receive(consumer: &mut Box<dyn Consumer>) -> Delivery {
    try_receive(consumer, Duration::from_secs(20)).await.expect("a delivery within 20 s")
}

/// The next delivery, if one comes within this time.
pub(crate) async fn try_receive(
    consumer: &mut Box<dyn Consumer>,
    within: Duration,
) -> Option<Delivery> {
    next(consumer, within).await.map(|received| received.expect("an open consumer"))
}

/// What comes next, delivery or error.
pub(crate) async fn next(
    consumer: &mut Box<dyn Consumer>,
    within: Duration,
) -> Option<Result<Delivery, Error>> {
    let mut out = Vec::new();
    let next = poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
    match tokio::time::timeout(within, next).await {
        Ok(Ok(())) => out.pop().map(Ok),
        Ok(Err(error)) => Some(Err(error)),
        Err(_) => None,
    }
}

pub(crate) async fn ack(delivery: Delivery) {
    delivery.settle(Outcome::Ack).await.expect("a settlement");
}

pub(crate) fn id(delivery: &Delivery) -> String {
    delivery.envelope().id.clone()
}

/// Waits until the group's depth is as expected.
pub(crate) async fn depth(
    broker: &KafkaBroker,
    subscription: &Subscription,
    expected: impl Fn(&Depth) -> bool,
) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let depth = broker.depth(subscription).await.expect("a depth");
        if expected(&depth) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{depth:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
