//! Messages that the client cannot read harm nobody but themselves.

#[path = "support/raw.rs"]
mod raw;
mod support;

use std::io;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, DeadLetterFilter, Envelope, Outcome, Queue, Redrive, Subscription, Topic,
};
use anybroker_rabbitmq::RabbitmqBroker;
use raw::{APP_ID, CONTENT_TYPE, CORRELATION_ID, HEADERS, MESSAGE_ID, REPLY_TO, Raw, TYPE, short};
use support::{ack, connect, delete, receive, send, servers, unique};
use tracing_subscriber::filter::LevelFilter;

const PAYLOAD: [u8; 4] = [0, 159, 146, 150];
/// Text as a program writes it that knows no Unicode.
const LATIN_1: &[u8] = b"gr\xf6\xdfe";

/// What has been logged in this process, by all its tests.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *LOG.lock().expect("a log"), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects, and listens to the log.
async fn open(url: &str) -> Arc<RabbitmqBroker> {
    static START: Once = Once::new();
    START.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::WARN);
        subscriber.with_ansi(false).with_writer(|| Log).init();
    });
    connect(url).await
}

/// The log says that a message of this queue was mended, and which one.
fn is_warned_of(subscription: &Subscription) {
    let log = LOG.lock().expect("a log");
    let log = String::from_utf8_lossy(&log);
    let consumer = format!(".{}\"", subscription.stored_name());
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("that the client cannot read") && line.contains(&consumer))
        .collect();
    let line = lines.first().unwrap_or_else(|| panic!("no line with {consumer} in {log}"));
    assert!(line.contains(" WARN ") && line.contains(" delivery_tag="), "{line}");
    println!("{line}");
}

/// A queue with neighbours around a hostile message, and another queue on the same connection.
struct Place {
    subscription: Subscription,
    other: Subscription,
}

impl Place {
    async fn new(broker: &RabbitmqBroker, name: &str) -> Self {
        let [subscription, other] = [name, "other"].map(|name| Subscription::queue(unique(name)));
        broker.declare(&subscription).await.expect("a queue");
        broker.declare(&other).await.expect("a queue");
        Self { subscription, other }
    }

    async fn neighbour(&self, broker: &RabbitmqBroker, id: &str) {
        for subscription in [&self.subscription, &self.other] {
            let queue = Queue::new(subscription.destination().name().to_owned());
            send(broker, queue, Envelope::new("t", "x").with_id(id.to_owned())).await;
        }
    }

    /// Handles what is there: neighbours at once, the hostile message in each way there is.
    async fn handle(&self, broker: &RabbitmqBroker, server: &str, hostile: usize) {
        let mut consumer = broker.consume(&self.subscription, 10).await.expect("a consumer");
        let mut others = broker.consume(&self.other, 10).await.expect("a consumer");
        let (mut neighbours, mut given_up) = (0, 0);
        while neighbours < 2 || given_up < hostile {
            let delivery = receive(&mut consumer).await;
            if &*delivery.envelope().payload == b"x" {
                neighbours += 1;
                ack(delivery).await;
                continue;
            }
            assert_eq!(*delivery.envelope().payload, PAYLOAD, "{server}");
            let outcome = match delivery.attempt() {
                1 => Outcome::Retry { after: Duration::ZERO },
                2 => Outcome::Retry { after: Duration::from_secs(1) },
                _ => {
                    given_up += 1;
                    Outcome::dead_letter("test", "hostile")
                }
            };
            delivery.settle(outcome).await.expect("a settlement");
        }
        for _ in 0..2 {
            ack(receive(&mut others).await).await;
        }
        is_warned_of(&self.subscription);
        let filter = DeadLetterFilter::all();
        let peek = broker.dead_letters(&self.subscription, &filter, 100).await.expect("a peek");
        assert_eq!(peek.entries.len(), hostile, "{server}");
        let sent = broker.redrive(&self.subscription, &Redrive::all()).await.expect("a redrive");
        assert_eq!(usize::try_from(sent).expect("a number"), hostile, "{server}");
        for _ in 0..hostile {
            let delivery = receive(&mut consumer).await;
            assert_eq!(*delivery.envelope().payload, PAYLOAD, "{server}");
            ack(delivery).await;
        }
        finish(broker, [consumer, others], [&self.subscription, &self.other]).await;
    }
}

async fn finish<const N: usize>(
    broker: &RabbitmqBroker,
    consumers: [Box<dyn Consumer>; N],
    subscriptions: [&Subscription; N],
) {
    for consumer in consumers {
        consumer.close().await.expect("it closes");
    }
    for subscription in subscriptions {
        delete(broker, subscription).await;
    }
    broker.close().await.expect("a closed broker");
}

async fn publish(url: &str, queue: String, messages: Vec<(u16, Vec<u8>)>) {
    let url = url.to_owned();
    let published = tokio::task::spawn_blocking(move || {
        let mut raw = Raw::connect(&url);
        for (flags, properties) in messages {
            raw.publish("", queue.as_bytes(), (flags, &properties), &PAYLOAD);
        }
    });
    published.await.expect("they are published");
}

#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_headers_end_no_process() {
    for (server, url) in servers() {
        let broker = open(&url).await;
        let place = Place::new(&broker, "nested").await;
        place.neighbour(&broker, "before").await;
        let messages = vec![
            (HEADERS, raw::nested_tables(1_500)),
            (HEADERS, raw::nested_arrays(2_500)),
            // What the client does read is passed on.
            (HEADERS, raw::nested_tables(100)),
        ];
        publish(&url, place.subscription.stored_name(), messages).await;
        place.neighbour(&broker, "after").await;
        place.handle(&broker, server, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_are_no_utf8_harm_nobody() {
    for (server, url) in servers() {
        let broker = open(&url).await;
        let place = Place::new(&broker, "latin").await;
        place.neighbour(&broker, "before").await;
        let properties = [CONTENT_TYPE, CORRELATION_ID, REPLY_TO, MESSAGE_ID, TYPE, APP_ID];
        let mut messages: Vec<_> =
            properties.into_iter().map(|flag| (flag, short(LATIN_1))).collect();
        messages.push((HEADERS, raw::entry(LATIN_1, b'S', &raw::long(LATIN_1))));
        let inner = raw::entry(LATIN_1, b't', &[1]);
        messages.push((HEADERS, raw::entry(b"x-outer", b'F', &inner)));
        let hostile = messages.len();
        publish(&url, place.subscription.stored_name(), messages).await;
        place.neighbour(&broker, "after").await;
        place.handle(&broker, server, hostile).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_key_that_is_no_utf8_harms_nobody() {
    for (server, url) in servers() {
        let broker = open(&url).await;
        let topic = unique("keys");
        let subscription = Subscription::topic(topic.clone()).group("one");
        broker.declare(&subscription).await.expect("a group");
        send(&broker, Topic::new(topic.clone()), Envelope::new("t", "x")).await;
        let (exchange, address) = (topic.clone(), url.clone());
        let published = tokio::task::spawn_blocking(move || {
            Raw::connect(&address).publish(&exchange, LATIN_1, (0, &[]), &PAYLOAD);
        });
        published.await.expect("it is published");
        send(&broker, Topic::new(topic.clone()), Envelope::new("t", "x")).await;
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        for payload in [b"x", &PAYLOAD[..], b"x"] {
            let delivery = receive(&mut consumer).await;
            assert_eq!(&*delivery.envelope().payload, payload, "{server}");
            ack(delivery).await;
        }
        is_warned_of(&subscription);
        finish(&broker, [consumer], [&subscription]).await;
    }
}

/// Two ids that differ in letters only which are no UTF-8 stay two ids: as one, the second message
/// would be taken for a copy of the first.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_no_utf8_stay_different() {
    for (server, url) in servers() {
        let broker = open(&url).await;
        let subscription = Subscription::queue(unique("ids"));
        broker.declare(&subscription).await.expect("a queue");
        let ids = [&b"M\xfcller"[..], b"M\xf6ller", b"Mu\xdfler"];
        let messages = ids.map(|id| (MESSAGE_ID, short(id))).to_vec();
        publish(&url, subscription.stored_name(), messages).await;
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let mut seen = Vec::new();
        for _ in ids {
            let delivery = receive(&mut consumer).await;
            seen.push(delivery.envelope().id.clone());
            ack(delivery).await;
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), ids.len(), "{server}: {seen:?}");
        is_warned_of(&subscription);
        finish(&broker, [consumer], [&subscription]).await;
    }
}
