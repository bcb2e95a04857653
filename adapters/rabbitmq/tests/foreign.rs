//! Messages of other clients, and other kinds of exchanges.

mod support;

use std::time::{Duration, SystemTime};

use anybroker_core::cloudevents::write_attributes;
use anybroker_core::{
    Broker, DeadLetterFilter, Envelope, Hop, Outcome, Outgoing, Redrive, Subscription, Topic,
};
use anybroker_rabbitmq::lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions,
};
use anybroker_rabbitmq::lapin::types::{AMQPValue, FieldArray, FieldTable};
use anybroker_rabbitmq::lapin::{BasicProperties, ExchangeKind};
use anybroker_rabbitmq::{Binding, RabbitmqBroker};
use support::{ack, connect, delete, parse, receive, send, servers, unique};

async fn put(broker: &RabbitmqBroker, queue: &str, properties: BasicProperties, payload: &[u8]) {
    let channel = broker.channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish("".into(), queue.into(), options, payload, properties).await;
    sent.expect("a publish").await.expect("a confirm");
}

fn table(entries: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A time as an attribute has it.
fn written(time: SystemTime) -> String {
    let mut text = String::new();
    let envelope = Envelope::new("t", "").with_expires(time);
    write_attributes(&envelope, &Hop::default(), |name, value| {
        if name == "expirytime" {
            value.clone_into(&mut text);
        }
    });
    text
}

/// The broker does not say when it stored a message: its delay counts from its arrival, so that it
/// is never early.
#[tokio::test(flavor = "multi_thread")]
async fn a_delay_of_a_machine_whose_clock_is_wrong_counts_from_arrival() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("clocks"));
        broker.declare(&subscription).await.expect("a queue");
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        for ahead in [false, true] {
            let hour = Duration::from_hours(1);
            let begun = SystemTime::now();
            let clock = if ahead { begun + hour } else { begun - hour };
            let due = written(clock + Duration::from_secs(2));
            let clock = written(clock);
            let attributes = [
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "s"),
                ("ce-type", "t"),
                ("ce-abclock", &clock),
                ("ce-notbefore", &due),
            ];
            let headers = table(attributes.map(|(name, value)| (name, text(value))));
            let properties = BasicProperties::default().with_headers(headers);
            put(&broker, &subscription.stored_name(), properties, b"{}").await;
            let delivery = receive(&mut consumer).await;
            let due = delivery.hop().not_before.expect("it is delayed");
            let wait = due.duration_since(begun).unwrap_or_default();
            assert!(
                wait >= Duration::from_secs(2) && wait < Duration::from_secs(8),
                "{server}: {wait:?}"
            );
            // A delay queue holds a copy for the larger part of a delay, which is over then.
            delivery.settle(Outcome::Retry { after: Duration::from_secs(3) }).await.expect("kept");
            let delivery = receive(&mut consumer).await;
            let due = delivery.hop().not_before.expect("it is delayed");
            let rest = due.duration_since(SystemTime::now()).unwrap_or_default();
            assert!(rest <= Duration::from_secs(1), "{server}: {rest:?}");
            ack(delivery).await;
        }
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_message_keeps_its_payload_and_headers_through_retry_and_dead_letter() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("plain"));
        broker.declare(&subscription).await.expect("a queue");
        let mut odd = FieldArray::default();
        odd.push(AMQPValue::LongLongInt(7));
        odd.push(AMQPValue::Void);
        let properties = BasicProperties::default()
            .with_reply_to("answers".into())
            .with_correlation_id("c-1".into())
            .with_priority(3)
            .with_headers(table([
                ("X-Tenant Id", text("größe")),
                ("retries", AMQPValue::LongUInt(4)),
                ("odd", AMQPValue::FieldArray(odd)),
                ("nested", AMQPValue::FieldTable(table([("deep", AMQPValue::Boolean(true))]))),
                ("binary", AMQPValue::LongString(vec![0xff, 0xfe].into())),
                ("x-death", text("made up")),
                ("x-delivery-count", AMQPValue::LongInt(-1)),
            ]));
        let payload = [0, 159, 146, 150];
        put(&broker, &subscription.stored_name(), properties, &payload).await;
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        let mut first: Option<Envelope> = None;
        for outcome in [
            Outcome::Retry { after: Duration::ZERO },
            Outcome::Retry { after: Duration::from_secs(1) },
            Outcome::dead_letter("test", "odd"),
            Outcome::Ack,
        ] {
            let delivery = receive(&mut consumer).await;
            let envelope = (**delivery.envelope()).clone();
            assert_eq!(&*envelope.payload, payload, "{server}");
            assert_eq!(&*envelope.r#type, subscription.destination().name());
            let native = envelope.headers.get("nativeheaders").expect("the native ones");
            for expected in [
                r#""X-Tenant Id":"größe""#,
                r#""retries":4"#,
                r#""odd":[7,null]"#,
                r#""nested":{"deep":true}"#,
                r#""binary":{"base64":"//4="}"#,
                r#""reply-to":"answers""#,
                r#""correlation-id":"c-1""#,
                r#""priority":3"#,
            ] {
                assert!(native.contains(expected), "{server}: {expected} in {native}");
            }
            assert!(!native.contains("x-d"), "{server}: {native}");
            assert_eq!(first.get_or_insert_with(|| envelope.clone()).headers, envelope.headers);
            let is_given_up = matches!(outcome, Outcome::DeadLetter { .. });
            delivery.settle(outcome).await.expect("a settlement");
            if is_given_up {
                let filter = DeadLetterFilter::all();
                let peek = broker.dead_letters(&subscription, &filter, 10).await.expect("a peek");
                assert_eq!(peek.entries[0].envelope.payload, envelope.payload);
                let sent = broker.redrive(&subscription, &Redrive::all()).await;
                assert_eq!(sent.expect("a redrive"), 1);
            }
        }
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_that_a_publisher_wrote_is_not_believed() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("counted"));
        broker.declare(&subscription).await.expect("a queue");
        let counters = ["x-delivery-count", "x-acquired-count"];
        let counters = counters.map(|name| (name, AMQPValue::LongLongInt(25)));
        let properties = BasicProperties::default().with_headers(table(counters));
        put(&broker, &subscription.stored_name(), properties, b"{}").await;
        let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
        for (attempt, outcome) in [
            (1, Outcome::Release { after: Duration::ZERO }),
            (1, Outcome::Retry { after: Duration::ZERO }),
            (2, Outcome::Ack),
        ] {
            let delivery = receive(&mut consumer).await;
            assert_eq!((delivery.attempt(), delivery.unsettled()), (attempt, 0), "{server}");
            delivery.settle(outcome).await.expect("a settlement");
        }
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_libraries_are_read_as_they_are() {
    for (_, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("events"));
        broker.declare(&subscription).await.expect("a queue");
        for prefix in ["ce-", "cloudEvents_", "cloudEvents:"] {
            let mut headers = FieldTable::default();
            for (name, value) in [
                ("specversion", text("1.0")),
                ("id", text("e-1")),
                ("source", text("/other")),
                ("type", text("order.created")),
                ("time", text("2026-11-24T08:00:00Z")),
                ("tenant", text("acme")),
                ("level", AMQPValue::LongInt(5)),
            ] {
                headers.insert(format!("{prefix}{name}").into(), value);
            }
            let properties = BasicProperties::default()
                .with_content_type("text/plain".into())
                .with_headers(headers);
            put(&broker, &subscription.stored_name(), properties, b"hello").await;
        }
        let structured =
            br#"{"specversion":"1.0","id":"e-1","source":"/other","type":"order.created",
            "time":"2026-11-24T08:00:00Z","tenant":"acme","level":5,"datacontenttype":"text/plain",
            "data":"hello"}"#;
        let properties = BasicProperties::default()
            .with_content_type("application/cloudevents+json; charset=utf-8".into());
        put(&broker, &subscription.stored_name(), properties, structured).await;
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        for _ in 0..4 {
            let delivery = receive(&mut consumer).await;
            let envelope = delivery.envelope();
            assert_eq!((&*envelope.id, &*envelope.r#type), ("e-1", "order.created"));
            assert_eq!((&*envelope.source, &*envelope.content_type), ("/other", "text/plain"));
            assert_eq!(envelope.headers.get("tenant"), Some("acme"));
            assert_eq!(envelope.headers.get("level"), Some("5"));
            assert_eq!(&*envelope.payload, b"hello");
            ack(delivery).await;
        }
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bindings_choose_what_a_group_gets() {
    for (server, url) in servers() {
        let [direct, topic, fanout, headers] = ["direct", "topic", "fanout", "headers"].map(unique);
        let broker = RabbitmqBroker::builder()
            .url(parse(&url))
            .expect("a URL")
            .exchange(direct.clone(), ExchangeKind::Direct)
            .exchange(fanout.clone(), ExchangeKind::Fanout)
            .exchange(headers.clone(), ExchangeKind::Headers)
            .bind(direct.clone(), "one", Binding::key("order.created"))
            .bind(topic.clone(), "one", Binding::key("order.*"))
            .bind(headers.clone(), "one", Binding::all_headers([("ce-tenant", "acme")]))
            .connect()
            .await
            .expect("a connection");
        for (topic, expected) in [
            (direct, &["order.created"][..]),
            (topic, &["order.created", "order.paid"]),
            (fanout, &["order.created", "order.paid", "invoice.sent"]),
            (headers, &["order.paid"]),
        ] {
            let subscription = Subscription::topic(topic.clone()).group("one");
            broker.declare(&subscription).await.expect("a group");
            for r#type in ["order.created", "order.paid", "invoice.sent"] {
                let tenant = if r#type == "order.paid" { "acme" } else { "other" };
                let envelope = Envelope::new(r#type, "x").with_header("tenant", tenant);
                let outgoing =
                    Outgoing::new(Topic::new(topic.clone()), envelope.expect("a header"));
                let sent = broker.producer().send(outgoing).await;
                assert_eq!(sent.is_ok(), expected.contains(&r#type), "{server} {topic}: {sent:?}");
            }
            let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
            for expected in expected {
                let delivery = receive(&mut consumer).await;
                assert_eq!(delivery.envelope().r#type, *expected, "{server} {topic}");
                ack(delivery).await;
            }
            drop(consumer);
            delete(&broker, &subscription).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_partitioned_queue_keep_to_one_of_its_queues() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let queue = anybroker_core::Queue::new(unique("parts")).ordered().partitions(3);
        let subscription = Subscription::queue(queue.clone());
        for round in 0..10 {
            for key in 0..6 {
                let envelope = Envelope::new("t", "x")
                    .with_key(format!("k{key}"))
                    .with_id(format!("k{key}.{round}"));
                send(&broker, queue.clone(), envelope).await;
            }
        }
        assert_eq!(broker.depth(&subscription).await.expect("a depth").ready, Some(60));
        let mut consumer = broker.consume(&subscription, 30).await.expect("a consumer");
        let mut next = [0; 6];
        for _ in 0..60 {
            let delivery = receive(&mut consumer).await;
            let id = delivery.envelope().id.clone();
            let (key, round) = id[1..].split_once('.').expect("both");
            let key: usize = key.parse().expect("a number");
            assert_eq!(round, next[key].to_string(), "{server}: {id}");
            next[key] += 1;
            ack(delivery).await;
        }
        consumer.close().await.expect("a closed consumer");
        let channel = broker.channel().await.expect("a channel");
        for part in ["--p0", "--p1", "--p2", "--dlq"] {
            let name = format!("{}{part}", subscription.stored_name());
            channel
                .queue_delete(name.into(), QueueDeleteOptions::default())
                .await
                .expect("it is there");
        }
    }
}
