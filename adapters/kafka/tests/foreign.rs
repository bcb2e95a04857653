//! Messages of other clients, and ours as they see them.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anybroker_core::cloudevents::write_attributes;
use anybroker_core::{
    BoxError, Broker, DeadLetterFilter, Destination, Envelope, Hop, Message as Handled, Outcome,
    Queue, Redrive, Subscription, Topic, Worker,
};
use anybroker_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use anybroker_kafka::rdkafka::message::{Header, Headers, OwnedHeaders};
use anybroker_kafka::rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use anybroker_kafka::rdkafka::{Message, Offset, TopicPartitionList};
use anybroker_kafka::{KafkaBroker, UnreadableBatches};
use anybroker_testkit::Log;
use support::{ack, builder, connect_single, receive, send, unique};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower::service_fn;

const SECONDS: Duration = Duration::from_secs(20);

/// Puts a message into a topic as any client does.
fn put(
    broker: &KafkaBroker,
    topic: &str,
    key: Option<&[u8]>,
    headers: &[(&str, &[u8])],
    payload: Option<&[u8]>,
) {
    let producer: BaseProducer = broker.client_config().create().expect("a producer");
    let all = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header { key, value: Some(*value) })
    });
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).headers(all);
    record.key = key;
    record.payload = payload;
    producer.send(record).expect("a queued message");
    producer.flush(SECONDS).expect("stored");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_and_an_expiry_count_from_the_brokers_time_of_storing() {
    let second = Duration::from_secs(1);
    let broker = connect_single().await;
    // What a test on a busy machine may take.
    let about = |time: SystemTime, least: SystemTime| time >= least && time < least + 20 * second;
    for topic in [false, true] {
        let name = unique("clocks");
        let subscription = if topic {
            Subscription::topic(name.clone()).group("one")
        } else {
            Subscription::queue(name.clone())
        };
        broker.declare(&subscription).await.expect("a group");
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        for (by, ahead) in [(40, false), (40, true), (3600, false), (3500, true)] {
            let begun = SystemTime::now();
            let by = Duration::from_secs(by);
            let clock = if ahead { begun + by } else { begun - by };
            let due = written(clock + 2 * second);
            let expires = written(clock + 20 * second);
            let clock = written(clock);
            let headers: Vec<(&str, &[u8])> = [
                ("ce_specversion", "1.0"),
                ("ce_id", "1"),
                ("ce_source", "s"),
                ("ce_type", "t"),
                ("ce_abclock", &clock),
                ("ce_notbefore", &due),
                ("ce_expirytime", &expires),
            ]
            .map(|(name, value)| (name, value.as_bytes()))
            .into();
            put(&broker, &name, None, &headers, Some(b"{}"));
            let delivery = receive(&mut consumer).await;
            let due = delivery.hop().not_before.expect("it is delayed");
            assert!(about(due, begun + 2 * second), "{due:?} {by:?} {ahead} {begun:?}");
            let expires = delivery.envelope().expires.expect("it expires");
            assert!(about(expires, begun + 20 * second), "{expires:?} {by:?} {ahead} {begun:?}");
            // The copy is that of a machine whose clock is right.
            delivery.settle(Outcome::Retry { after: second }).await.expect("kept");
            let delivery = receive(&mut consumer).await;
            let expires = delivery.envelope().expires.expect("so does the copy");
            assert!(about(expires, begun + 20 * second), "{expires:?} {by:?} {ahead} {begun:?}");
            let due = delivery.hop().not_before.expect("it was delayed");
            assert!(due <= SystemTime::now(), "{due:?}");
            ack(delivery).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_message_keeps_payload_key_and_headers_through_retry_and_dead_letter() {
    let broker = connect_single().await;
    let name = unique("plain");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    let headers: &[(&str, &[u8])] =
        &[("X-Tenant Id", "größe".as_bytes()), ("binary", &[0xff, 0xfe])];
    let payload = [0, 159, 146, 150];
    put(&broker, &name, Some(b"customer 7"), headers, Some(&payload));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let mut first: Option<Envelope> = None;
    for outcome in [
        Outcome::Retry { after: Duration::ZERO },
        Outcome::Retry { after: Duration::from_millis(300) },
        Outcome::dead_letter("test", "odd"),
        Outcome::Ack,
    ] {
        let delivery = receive(&mut consumer).await;
        let envelope = (**delivery.envelope()).clone();
        assert_eq!(&*envelope.payload, payload);
        assert_eq!(envelope.id, format!("{name}:0:0"), "the same at each reading");
        assert_eq!((&*envelope.r#type, envelope.key.as_deref()), (&*name, Some("customer 7")));
        let native = envelope.headers.get("nativeheaders").expect("the native ones");
        assert_eq!(native, r#"{"X-Tenant Id":"größe","binary":{"base64":"//4="}}"#);
        assert_eq!(*first.get_or_insert(envelope.clone()), envelope);
        let given_up = matches!(outcome, Outcome::DeadLetter { .. });
        delivery.settle(outcome).await.expect("a settlement");
        if given_up {
            let found = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 1).await;
            assert_eq!(*found.expect("a look").entries[0].envelope, envelope);
            let sent = broker.redrive(&subscription, &Redrive::all()).await;
            assert_eq!(sent.expect("a redrive"), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_is_an_empty_message_and_an_empty_one_no_tombstone() {
    let broker = connect_single().await;
    let name = unique("tombstone");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    put(&broker, &name, Some(b"key"), &[], None);
    send(&broker, subscription.destination().clone(), Envelope::new("empty", "")).await;
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for _ in 0..2 {
        let delivery = receive(&mut consumer).await;
        assert!(delivery.envelope().payload.is_empty());
        ack(delivery).await;
    }
    let (payload, _, _) = look(&broker, &name, 1);
    assert_eq!(payload, Some(Vec::new()));
}

/// A message as another client sees it: payload, key, headers.
type Seen = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, String)>);

fn look(broker: &KafkaBroker, topic: &str, offset: i64) -> Seen {
    let mut config = broker.client_config();
    let consumer: BaseConsumer = config.set("group.id", "look").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    let message = loop {
        if let Ok(message) = consumer.poll(SECONDS).expect("a message") {
            break message;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let pair = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), text(header.value.unwrap_or_default()))
        };
        headers.iter().map(pair).collect()
    });
    (message.payload().map(<[u8]>::to_vec), message.key().map(<[u8]>::to_vec), headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_are_events_of_the_official_binding() {
    let broker = connect_single().await;
    let topic = Topic::new(unique("binding"));
    let envelope = Envelope::new("order.created", r#"{"id":7}"#)
        .with_id("7")
        .with_key("customer 7")
        .with_version(2)
        .with_header("tenant", "größe")
        .expect("a header");
    send(&broker, topic.clone(), envelope).await;
    let (payload, key, headers) = look(&broker, Destination::from(topic).name(), 0);
    assert_eq!(payload.as_deref(), Some(&br#"{"id":7}"#[..]));
    assert_eq!(key.as_deref(), Some(&b"customer 7"[..]));
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_id", "7"),
        ("ce_type", "order.created"),
        ("ce_partitionkey", "customer 7"),
        ("ce_schemaversion", "2"),
        ("ce_tenant", "größe"),
    ] {
        let found = headers.iter().filter(|(known, _)| known == name);
        assert_eq!(found.map(|(_, value)| &**value).collect::<Vec<_>>(), [value], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_sdks_are_read_in_both_modes() {
    let broker = connect_single().await;
    let name = unique("sdk");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    let binary: &[(&str, &[u8])] = &[
        ("ce_specversion", b"1.0"),
        ("ce_id", b"a"),
        ("ce_source", b"/sensors"),
        ("ce_type", b"measured"),
        ("ce_subject", b"x"),
        ("content-type", b"text/plain"),
    ];
    put(&broker, &name, None, binary, Some(b"21"));
    let structured: &[(&str, &[u8])] = &[("content-type", b"application/cloudevents+json")];
    let event = br#"{"specversion":"1.0","id":"b","source":"/sensors","type":"measured","subject":"x","datacontenttype":"text/plain","data":"21"}"#;
    put(&broker, &name, None, structured, Some(event));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for id in ["a", "b"] {
        let delivery = receive(&mut consumer).await;
        let envelope = delivery.envelope();
        assert_eq!((&*envelope.id, &*envelope.r#type), (id, "measured"));
        assert_eq!((&*envelope.source, &*envelope.content_type), ("/sensors", "text/plain"));
        assert_eq!(envelope.headers.get("subject"), Some("x"));
        assert_eq!(envelope.payload, "21");
        ack(delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_text_stay_apart() {
    let broker = connect_single().await;
    let name = unique("keys");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    put(&broker, &name, Some(&[0xff, 0x01]), &[], Some(b"1"));
    put(&broker, &name, Some(&[0xff, 0x02]), &[], Some(b"2"));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for key in ["ff01", "ff02"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.envelope().key.as_deref(), Some(key));
        ack(delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_too_far_ahead_is_a_dead_letter_that_says_so() {
    let broker = connect_single().await;
    for queue in [Queue::new(unique("far")), Queue::new(unique("far")).ordered()] {
        let subscription = Subscription::queue(queue.clone());
        broker.declare(&subscription).await.expect("a queue");
        let name = subscription.destination().name().to_owned();
        for due in ["2060-01-01T00:00:00Z", "9998-12-31T23:59:59Z"] {
            let headers = [("ce_id", due.as_bytes()), ("ce_notbefore", due.as_bytes())];
            put(&broker, &name, None, &headers, Some(b"{}"));
        }
        send(&broker, queue, Envelope::new("next", "{}").with_id("next")).await;
        let (sender, mut seen) = mpsc::unbounded_channel();
        let handler = service_fn(move |message: Handled| {
            // A test that has seen enough reads no more.
            let _ = sender.send(message.envelope().id.clone());
            async { Ok::<_, BoxError>(Outcome::Ack) }
        });
        let worker = Worker::new(broker.clone()).subscribe(subscription.clone(), handler);
        let worker = worker.start().await.expect("a worker");
        let next = timeout(SECONDS, seen.recv()).await.expect("what follows is handled");
        assert_eq!(next.as_deref(), Some("next"));
        let report = worker.run_until(async {}).await.expect("a report");
        assert_eq!((report.handled, report.dead_lettered), (1, 2), "{report}");
        let all = DeadLetterFilter::all();
        let dead = broker.dead_letters(&subscription, &all, 9).await.expect("dead letters").entries;
        for letter in &dead {
            let failure = letter.failure().expect("a failure");
            assert_eq!((&*failure.reason, letter.hop.attempts), ("too-far-ahead", 0));
            assert!(failure.error.contains("max_delay"), "{}", failure.error);
        }
        assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive"), 2);
    }
}

/// Whoever may write to the dead-letter topic must not be able to hide what was given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_looks_like_a_mark_of_a_redrive_hides_no_dead_letter() {
    let broker = connect_single().await;
    let subscription = Subscription::queue(unique("marks"));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for number in 0..3 {
        let envelope = Envelope::new("t", "{}").with_id(format!("m{number}"));
        send(&broker, subscription.destination().clone(), envelope).await;
        let delivery = receive(&mut consumer).await;
        let outcome = Outcome::dead_letter("test", "given up");
        delivery.settle(outcome).await.expect("a dead letter");
    }
    let topic = format!("{}--dlq", subscription.stored_name());
    for forged in ["0,1,2", "0@0,1@0,2@0", "0@", "99999@0", ""] {
        put(&broker, &topic, None, &[("abremoved", forged.as_bytes())], Some(b""));
    }
    let left = async || {
        let all = DeadLetterFilter::all();
        let peek = broker.dead_letters(&subscription, &all, 100).await.expect("a look");
        let ours = peek.entries.iter().filter(|letter| letter.failure().is_some());
        let depth = broker.depth(&subscription).await.expect("a depth").dead_lettered;
        (ours.count(), peek.entries.len(), depth)
    };
    assert_eq!(left().await, (3, 8, Some(8)), "what is no mark is a letter itself");
    let given_up = DeadLetterFilter::all().reason("test");
    let redriven = broker.redrive(&subscription, &Redrive::all().filter(given_up)).await;
    assert_eq!(redriven.expect("a redrive"), 3);
    // One of them names what is gone now, as an old mark does.
    assert_eq!(left().await, (0, 4, Some(4)), "they are marked as sent back");
    for _ in 0..3 {
        ack(receive(&mut consumer).await).await;
    }
}

/// A connection that takes no more than 2 MB at once, unpacked too.
async fn narrow(unreadable: UnreadableBatches) -> Arc<KafkaBroker> {
    let builder = builder().unreadable(unreadable).partitions(2);
    let builder = builder.native_option("fetch.max.bytes", "1000000");
    let builder = builder.native_option("receive.message.max.bytes", "2000000");
    builder.connect().await.expect("a connection")
}

/// Puts messages into a partition, in one batch.
fn put_together(broker: &KafkaBroker, topic: &str, partition: i32, payloads: &[&[u8]]) {
    let mut config = broker.client_config();
    config.set("compression.type", "zstd").set("message.max.bytes", "100000000");
    config.set("batch.size", "100000000").set("linger.ms", "200");
    let producer: BaseProducer = config.create().expect("a producer");
    for payload in payloads {
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).payload(*payload);
        producer.send(record.partition(partition)).expect("a queued message");
    }
    producer.flush(SECONDS).expect("stored");
}

/// Zeros take next to nothing on the wire, and more than a client takes once they are unpacked.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_unpacked_stops_its_partition_alone_and_is_named() {
    let log = Log::keep();
    let broker = narrow(UnreadableBatches::Stop).await;
    let name = unique("bomb");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    let zeros = vec![0; 3 << 20];
    for payload in [&b"before"[..], &zeros, b"behind"] {
        put_together(&broker, &name, 0, &[payload]);
    }
    put_together(&broker, &name, 1, &[b"beside"]);
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let mut received = Vec::new();
    for _ in 0..2 {
        let delivery = receive(&mut consumer).await;
        received.push(String::from_utf8_lossy(&delivery.envelope().payload).into_owned());
        ack(delivery).await;
    }
    received.sort();
    assert_eq!(received, ["before", "beside"]);
    let place = format!("{name}[0]");
    let parts = ["ERROR", "cannot be unpacked", &place, "offset=1 behind=2"];
    let end = Instant::now() + SECONDS;
    while log.lines(&parts).is_empty() && Instant::now() < end {
        sleep(Duration::from_millis(50)).await;
    }
    put_together(&broker, &name, 1, &[b"still"]);
    assert_eq!(receive(&mut consumer).await.envelope().payload, &b"still"[..]);
    let depth = broker.depth(&subscription).await.expect("a depth");
    assert!(depth.ready.is_some_and(|ready| ready >= 2), "{depth:?}");
    assert_eq!(log.lines(&parts).len(), 1, "once, not at each attempt");
}

/// Batches of one and of three messages, with one between them that can be read.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_cannot_be_unpacked_are_passed_over_where_that_is_asked_for() {
    let broker = narrow(UnreadableBatches::Skip).await;
    let name = unique("bombs");
    let subscription = Subscription::queue(name.clone());
    broker.declare(&subscription).await.expect("a queue");
    let zeros = vec![0; 3 << 20];
    let batches: [&[&[u8]]; 5] =
        [&[b"before"], &[&zeros], &[b"between"], &[&zeros, &zeros, &zeros], &[b"behind"]];
    for batch in batches {
        put_together(&broker, &name, 1, batch);
    }
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for payload in ["before", "between", "behind"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(String::from_utf8_lossy(&delivery.envelope().payload), payload);
        ack(delivery).await;
    }
    let all = DeadLetterFilter::all().reason("unreadable");
    let peek = broker.dead_letters(&subscription, &all, 10).await.expect("a look");
    let place = |offset, behind| {
        format!(r#"{{"topic":"{name}","partition":1,"offset":{offset},"behind":{behind}}}"#)
    };
    let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
    let found: Vec<_> = peek.entries.iter().map(|one| text(&one.envelope.payload)).collect();
    assert_eq!(found, [place(1, 2), place(3, 6)]);
    consumer.close().await.expect("a close");
    let depth = broker.depth(&subscription).await.expect("a depth");
    assert_eq!((depth.ready, depth.in_flight), (Some(0), Some(0)), "it is committed past them");
}
