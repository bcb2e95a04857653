//! What the tests share: the servers, names of their own, and a few steps.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, BrokerUrl, Consumer, Delivery, Destination, Envelope, Outcome, Outgoing,
};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::{Cmd, FromRedisValue};

/// The URL of each server.
pub(crate) fn servers() -> Vec<String> {
    ["ANYBROKER_REDIS_70_URL", "ANYBROKER_REDIS_8_URL", "ANYBROKER_VALKEY_9_URL"]
        .map(variable)
        .into()
}

/// The URL of the newest one.
pub(crate) fn server() -> String {
    variable("ANYBROKER_REDIS_8_URL")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| {
        panic!("{name}: {error}: run `cargo xtask test`, which starts the servers")
    })
}

/// Something that nobody else on the server is called.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{:08x}", fastrand::u32(..))
}

pub(crate) fn parse(url: &str) -> BrokerUrl {
    url.parse().expect("a URL")
}

pub(crate) async fn connect(url: &str) -> Arc<RedisBroker> {
    anybroker_redis::connect(parse(url)).await.expect("a connection")
}

pub(crate) async fn send(broker: &RedisBroker, to: impl Into<Destination>, envelope: Envelope) {
    broker.producer().send(Outgoing::new(to, envelope)).await.expect("a confirmed publish");
}

pub(crate) fn message(id: impl Into<String>) -> Envelope {
    Envelope::new("test.message", "{}").with_id(id)
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

/// Acknowledges this many; answers their ids.
pub(crate) async fn ack_all(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let delivery = receive(consumer).await;
        ids.push(delivery.envelope().id.clone());
        ack(delivery).await;
    }
    ids
}

/// Runs a command of the client.
pub(crate) async fn run<T: FromRedisValue>(broker: &RedisBroker, command: &Cmd) -> T {
    let mut connection = broker.connection().await.expect("a connection");
    command.query_async(&mut connection).await.expect("an answer")
}
