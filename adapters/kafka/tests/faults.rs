//! The way to the server falls silent, or is cut while answers are on it.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anybroker_core::{
    Broker, BrokerUrl, Consumer, Envelope, ErrorKind, Outgoing, Queue, RetryClass, Subscription,
};
use anybroker_kafka::{KafkaBroker, KafkaBuilder};
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{Kafka, Server};
use support::{ack, id, receive, send, try_receive};
use tokio::net::TcpListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that sends its clients to a proxy, but for those that come by TLS.
async fn server() -> (Server, Proxy) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let kafka = Kafka::new().tls().advertise(port).config("group.min.session.timeout.ms=1000");
    let server = tokio::task::spawn_blocking(move || kafka.launch()).await.expect("no panic");
    let server = server.expect("a server");
    let proxy = Proxy::on(listener, server.url()).expect("a proxy");
    (server, proxy)
}

fn builder(url: &str) -> KafkaBuilder {
    let url: BrokerUrl = url.parse().expect("a URL");
    KafkaBroker::builder().url(url).expect("known options").partitions(1)
}

async fn through(proxy: &Proxy) -> Arc<KafkaBroker> {
    let builder = builder(proxy.url()).publish_timeout(Duration::from_secs(8));
    builder.session_timeout(Duration::from_secs(2)).connect().await.expect("a connection")
}

async fn past(server: &Server) -> Arc<KafkaBroker> {
    let tls = server.tls().expect("a listener with TLS");
    builder(&tls.url).ca(&tls.authority).connect().await.expect("a connection")
}

fn message(id: impl Into<String>) -> Envelope {
    Envelope::new("t", "{}").with_id(id)
}

/// Acknowledges until one with this id comes; answers the ids before it.
async fn ack_until(consumer: &mut Box<dyn Consumer>, last: &str) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let delivery = receive(consumer).await;
        let id = id(&delivery);
        ack(delivery).await;
        if id == last {
            return ids;
        }
        ids.push(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_into_silence_end_in_time_and_say_what_is_known() {
    let (server, proxy) = server().await;
    let (broker, direct) = (through(&proxy).await, past(&server).await);
    let queue = Queue::new("silent");
    send(&broker, queue.clone(), message("first")).await;
    proxy.swallow();
    let (producer, begun) = (broker.producer(), Instant::now());
    let outgoing = |id: &str| Outgoing::new(queue.clone(), message(id));
    let sends: Vec<_> = (0..100).map(|id| producer.send(outgoing(&id.to_string()))).collect();
    let mut unsent = HashSet::new();
    for (number, sent) in sends.into_iter().enumerate() {
        let error = timeout(PATIENCE, sent).await.expect("an end").expect_err("all is silent");
        match (error.kind(), error.retry_class()) {
            (ErrorKind::Timeout, RetryClass::Ambiguous) => {}
            (ErrorKind::Timeout | ErrorKind::Unavailable, RetryClass::Transient) => {
                unsent.insert(number.to_string());
            }
            _ => panic!("{error:?}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    proxy.pass();
    let passing = Instant::now();
    while let Err(error) = producer.send(outgoing("after")).await {
        assert!(passing.elapsed() < PATIENCE, "it goes on: {error:?}");
    }
    send(&direct, queue.clone(), message("last")).await;
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = direct.consume(&subscription, 50).await.expect("a consumer");
    let mut stored = ack_until(&mut consumer, "last").await;
    assert!(stored.contains(&"after".to_owned()), "{stored:?}");
    stored.retain(|id| id != "after");
    let count = stored.len();
    let stored: HashSet<_> = stored.into_iter().collect();
    assert_eq!(stored.len(), count, "nothing is stored twice: {stored:?}");
    assert!(stored.contains("first"), "{stored:?}");
    assert!(stored.is_disjoint(&unsent), "what was not sent is not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_whose_answers_are_lost_are_stored_once() {
    let (server, proxy) = server().await;
    let (broker, direct) = (through(&proxy).await, past(&server).await);
    let queue = Queue::new("unanswered");
    let subscription = Subscription::queue(queue.clone());
    send(&broker, queue.clone(), message("first")).await;
    let mut consumer = direct.consume(&subscription, 50).await.expect("a consumer");
    assert!(ack_until(&mut consumer, "first").await.is_empty());
    proxy.swallow_answers();
    let producer = broker.producer();
    let outgoing = |id: String| Outgoing::new(queue.clone(), message(id));
    let sends: Vec<_> = (0..10).map(|id| producer.send(outgoing(id.to_string()))).collect();
    let arrived = receive(&mut consumer).await;
    proxy.cut();
    proxy.pass();
    let mut stored = vec![id(&arrived)];
    ack(arrived).await;
    let mut confirmed = HashSet::new();
    for (number, sent) in sends.into_iter().enumerate() {
        match timeout(PATIENCE, sent).await.expect("an end") {
            Ok(()) => _ = confirmed.insert(number.to_string()),
            Err(error) => assert_eq!(error.retry_class(), RetryClass::Ambiguous, "{error:?}"),
        }
    }
    send(&broker, queue.clone(), message("last")).await;
    stored.extend(ack_until(&mut consumer, "last").await);
    let count = stored.len();
    let stored: HashSet<_> = stored.into_iter().collect();
    assert_eq!(stored.len(), count, "each is stored once");
    assert!(confirmed.is_subset(&stored), "{confirmed:?} {stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_gets_what_came_while_its_connection_was_silent() {
    let (server, proxy) = server().await;
    let (broker, direct) = (through(&proxy).await, past(&server).await);
    let queue = Queue::new("idle");
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
    send(&direct, queue.clone(), message("first")).await;
    assert!(ack_until(&mut consumer, "first").await.is_empty());
    // Shorter than its session, and longer: then it is thrown out of its group.
    for silence in [500, 3000].map(Duration::from_millis) {
        proxy.swallow();
        let mut expected = HashSet::new();
        for number in 0..3 {
            let id = format!("{silence:?}.{number}");
            send(&direct, queue.clone(), message(&id)).await;
            expected.insert(id);
        }
        let received = try_receive(&mut consumer, silence).await;
        assert!(received.is_none(), "{received:?}");
        proxy.pass();
        while !expected.is_empty() {
            let delivery = receive(&mut consumer).await;
            expected.remove(&id(&delivery));
            // Nobody can say so, once it was thrown out; then it comes again.
            let _ = delivery.settle(anybroker_core::Outcome::Ack).await;
        }
    }
}
