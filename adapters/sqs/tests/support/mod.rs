//! What the tests share: the servers, names of their own, and a few steps.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Delivery, Destination, Envelope, Outcome, Outgoing, Subscription,
};
use anybroker_sqs::SqsBroker;

/// The URL of a server, with options that suit tests.
fn server(variable: &str, options: &str) -> String {
    match std::env::var(variable) {
        Ok(url) => format!("{url}?poll=1s{options}"),
        Err(error) => {
            panic!("{variable}: {error}: run `cargo xtask test sqs`, which starts the servers")
        }
    }
}

/// Both servers.
pub(crate) async fn both() -> [Arc<SqsBroker>; 2] {
    [elasticmq().await, ministack().await]
}

/// Queues alone, with AWS's limits.
pub(crate) async fn elasticmq() -> Arc<SqsBroker> {
    connect(&server("ANYBROKER_ELASTICMQ_URL", "&sns=off")).await
}

/// Queues and topics.
pub(crate) async fn ministack() -> Arc<SqsBroker> {
    connect(&server("ANYBROKER_SQS_URL", "")).await
}

pub(crate) async fn connect(url: &str) -> Arc<SqsBroker> {
    anybroker_sqs::connect(url.parse().expect("a URL")).await.expect("a connection")
}

/// Something that nobody else on the server is called.
pub(crate) fn unique(what: &str) -> String {
    let id = Envelope::new("name", "").id;
    format!("{what}-{}", &id[id.len() - 12..])
}

pub(crate) fn message(id: &str) -> Envelope {
    Envelope::new("test.message", format!("{{\"id\":\"{id}\"}}")).with_id(id)
}

pub(crate) async fn send(broker: &SqsBroker, to: impl Into<Destination>, envelope: Envelope) {
    broker.producer().send(Outgoing::new(to, envelope)).await.expect("a confirmed publish");
}

pub(crate) async fn consume(broker: &SqsBroker, subscription: &Subscription) -> Box<dyn Consumer> {
    broker.consume(subscription, 16).await.expect("a consumer")
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

pub(crate) async fn settle(delivery: Delivery, outcome: Outcome) {
    delivery.settle(outcome).await.expect("settled");
}

/// The ids of the next deliveries, which are acknowledged one after the other.
pub(crate) async fn ack(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let delivery = receive(consumer).await;
        ids.push(delivery.envelope().id.clone());
        settle(delivery, Outcome::Ack).await;
    }
    ids
}
