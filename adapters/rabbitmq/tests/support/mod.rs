//! What the tests share: the servers, names of their own, and a few steps.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, BrokerUrl, Consumer, Delivery, Destination, Envelope, Outcome, Outgoing, Subscription,
};
use anybroker_rabbitmq::RabbitmqBroker;

/// The URL of each server.
pub(crate) fn servers() -> Vec<(&'static str, String)> {
    ["ANYBROKER_RABBITMQ_310_URL", "ANYBROKER_RABBITMQ_43_URL"]
        .into_iter()
        .map(|name| match std::env::var(name) {
            Ok(url) => (name, url),
            Err(error) => {
                panic!("{name}: {error}: run `cargo xtask test`, which starts the servers")
            }
        })
        .collect()
}

/// Something that nobody else on the server is called.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{:08x}", fastrand::u32(..))
}

pub(crate) fn parse(url: &str) -> BrokerUrl {
    url.parse().expect("a URL")
}

pub(crate) async fn connect(url: &str) -> Arc<RabbitmqBroker> {
    anybroker_rabbitmq::connect(parse(url)).await.expect("a connection")
}

pub(crate) async fn send(broker: &RabbitmqBroker, to: impl Into<Destination>, envelope: Envelope) {
    broker.producer().send(Outgoing::new(to, envelope)).await.expect("a confirmed publish");
}

/// The next delivery, within ten seconds.
pub(crate) async fn receive(consumer: &mut Box<dyn Consumer>) -> Delivery {
    try_receive(consumer, Duration::from_secs(10)).await.expect("a delivery within 10 s")
}

/// The next delivery, if one comes within this time.
pub(crate) async fn try_receive(
    consumer: &mut Box<dyn Consumer>,
    within: Duration,
) -> Option<Delivery> {
    let mut out = Vec::new();
    let next = poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
    match tokio::time::timeout(within, next).await {
        Ok(received) => received.expect("an open consumer"),
        Err(_) => return None,
    }
    out.pop()
}

pub(crate) async fn ack(delivery: Delivery) {
    delivery.settle(Outcome::Ack).await.expect("a settlement");
}

/// Deletes what a subscription stored.
pub(crate) async fn delete(broker: &RabbitmqBroker, subscription: &Subscription) {
    use anybroker_rabbitmq::lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
    let channel = broker.channel().await.expect("a channel");
    let stored = subscription.stored_name();
    let mut names = vec![stored.clone(), format!("{stored}--dlq")];
    names.extend((0..6).map(|power| format!("{stored}--delay-{}s", 1 << power)));
    names.push(format!("{stored}--runs"));
    for name in names {
        let _ = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
    }
    let name = subscription.destination().name();
    for exchange in [name.to_owned(), format!("{name}--shape")] {
        let options = ExchangeDeleteOptions::default();
        let _ = channel.exchange_delete(exchange.as_str().into(), options).await;
    }
}
