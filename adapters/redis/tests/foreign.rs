//! Messages of others, and ours as others see them.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, DeadLetterFilter, Message, Outcome, Queue, Redrive, Subscription, Worker,
};
use anybroker_redis::redis::cmd;
use support::{ack, connect, message, receive, run, send, server, unique};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower::service_fn;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_another_library_is_read_as_it_is() {
    let broker = connect(&server()).await;
    let name = unique("foreign");
    let mut consumer = broker.consume(&Subscription::queue(name.clone()), 8).await.expect("one");
    let mut add = cmd("XADD");
    add.arg(&name).arg("*");
    for (field, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", "e-1"),
        ("ce_source", "/shop"),
        ("ce_type", "order.created"),
        ("ce_tenant", "acme"),
        ("content-type", "text/plain"),
        ("data", "seven"),
        ("trace", "abc"),
    ] {
        add.arg(field).arg(value);
    }
    let _: String = run(&broker, &add).await;
    let delivery = receive(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!(
        (&*envelope.id, &*envelope.source, &*envelope.r#type),
        ("e-1", "/shop", "order.created")
    );
    assert_eq!((&*envelope.content_type, &*envelope.payload), ("text/plain", &b"seven"[..]));
    assert_eq!(envelope.headers.get("tenant"), Some("acme"));
    assert_eq!(envelope.headers.get("nativeheaders"), Some(r#"{"trace":"abc"}"#));
    ack(delivery).await;

    let structured = r#"{"specversion":"1.0","id":"e-2","source":"/s","type":"t","data":{"a":1}}"#;
    let mut add = cmd("XADD");
    add.arg(&name).arg("*").arg("content-type").arg("application/cloudevents+json");
    let _: String = run(&broker, add.arg("data").arg(structured)).await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(
        (&*delivery.envelope().id, &*delivery.envelope().payload),
        ("e-2", &br#"{"a":1}"#[..])
    );
    ack(delivery).await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_entry_goes_through_retry_and_dead_letters() {
    let broker = connect(&server()).await;
    let name = unique("plain");
    let subscription = Subscription::queue(name.clone());
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let mut add = cmd("XADD");
    add.arg(&name).arg("*").arg("user").arg("7").arg("raw").arg(&[0_u8, 255][..]);
    let id: String = run(&broker, &add).await;
    let first = receive(&mut consumer).await;
    let envelope = first.envelope().clone();
    assert_eq!((&*envelope.id, &*envelope.r#type), (&*id, &*name));
    assert_eq!(
        envelope.headers.get("nativeheaders"),
        Some(r#"{"raw":{"base64":"AP8="},"user":"7"}"#)
    );
    first.settle(Outcome::Retry { after: std::time::Duration::from_millis(10) }).await.expect("ok");
    let second = receive(&mut consumer).await;
    assert_eq!((second.attempt(), &second.envelope().id), (2, &id));
    second.settle(Outcome::dead_letter("odd", "why")).await.expect("settled");
    let all = DeadLetterFilter::all();
    let dead = broker.dead_letters(&subscription, &all, 9).await.expect("dead letters").entries;
    assert_eq!(dead[0].envelope.headers, envelope.headers);
    assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive"), 1);
    ack(receive(&mut consumer).await).await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn others_find_our_messages_in_fields() {
    let broker = connect(&server()).await;
    let name = unique("ours");
    let envelope = message("m-1").with_key("k").with_header("tenant", "acme").expect("a name");
    send(&broker, Queue::new(name.clone()), envelope).await;
    let found: Vec<(String, HashMap<String, String>)> =
        run(&broker, cmd("XRANGE").arg(&name).arg("-").arg("+")).await;
    let fields = &found[0].1;
    for (field, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", "m-1"),
        ("ce_source", "anybroker"),
        ("ce_type", "test.message"),
        ("ce_partitionkey", "k"),
        ("ce_tenant", "acme"),
        ("content-type", "application/json"),
        ("data", "{}"),
    ] {
        assert_eq!(fields.get(field).map(String::as_str), Some(value), "{field}");
    }
    assert_eq!(fields.len(), 9, "and its time: {fields:?}");
    broker.close().await.expect("a close");
}

/// A worker that tells the ids of what its handler sees.
async fn working(
    broker: &std::sync::Arc<anybroker_redis::RedisBroker>,
    subscription: &Subscription,
) -> (anybroker_core::RunningWorker, mpsc::UnboundedReceiver<String>) {
    let (sender, seen) = mpsc::unbounded_channel();
    let handler = service_fn(move |message: Message| {
        // A test that has seen enough reads no more.
        let _ = sender.send(message.envelope().id.clone());
        async { Ok::<_, BoxError>(Outcome::Ack) }
    });
    let worker =
        Worker::new(broker.clone()).concurrency(16).subscribe(subscription.clone(), handler);
    (worker.start().await.expect("a worker"), seen)
}

async fn next(seen: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = timeout(Duration::from_secs(20), seen.recv()).await;
    next.expect("a message within 20 s").expect("a handler")
}

/// Adds a message of another producer to a stream.
async fn add(broker: &anybroker_redis::RedisBroker, stream: &str, fields: &[(&str, &[u8])]) {
    let mut add = cmd("XADD");
    add.arg(stream).arg("*");
    for (field, value) in fields {
        add.arg(field).arg(value);
    }
    let _: String = run(broker, &add).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_too_far_ahead_is_a_dead_letter_that_says_so() {
    let broker = connect(&server()).await;
    for queue in [Queue::new(unique("far")), Queue::new(unique("far")).ordered()] {
        let subscription = Subscription::queue(queue.clone());
        broker.declare(&subscription).await.expect("a queue");
        let name = subscription.destination().name().to_owned();
        for due in ["2060-01-01T00:00:00Z", "9998-12-31T23:59:59Z"] {
            add(&broker, &name, &[("ce_id", due.as_bytes()), ("ce_notbefore", due.as_bytes())])
                .await;
        }
        send(&broker, queue, message("next")).await;
        let (worker, mut seen) = working(&broker, &subscription).await;
        assert_eq!(next(&mut seen).await, "next");
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
        let (worker, mut seen) = working(&broker, &subscription).await;
        let mut redriven = [next(&mut seen).await, next(&mut seen).await];
        redriven.sort_unstable();
        assert_eq!(redriven, ["2060-01-01T00:00:00Z", "9998-12-31T23:59:59Z"]);
        worker.run_until(async {}).await.expect("a report");
    }
    broker.close().await.expect("a close");
}

/// What a handler is not shown is kept as it was, in the dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_max_payload_is_a_dead_letter_with_all_its_fields() {
    let url = server();
    let separator = if url.contains('?') { '&' } else { '?' };
    let limited = connect(&format!("{url}{separator}max-payload=1048576")).await;
    let broker = connect(&url).await;
    let (raw, image) = (vec![0xff; 3 << 20], vec![b'x'; 2 << 20]);
    for queue in [Queue::new(unique("large")), Queue::new(unique("large")).ordered()] {
        let subscription = Subscription::queue(queue.clone());
        broker.declare(&subscription).await.expect("a queue");
        let name = subscription.destination().name().to_owned();
        let forged = b"forged".as_slice();
        let fields =
            [("ce_id", b"raw".as_slice()), ("raw", raw.as_slice()), ("ce_abreason", forged)];
        add(&broker, &name, &fields).await;
        let fields = [("ce_id", b"image".as_slice()), ("user", b"7"), ("data", image.as_slice())];
        add(&broker, &name, &fields).await;
        let many: Vec<_> = (0..4000).map(|number| (number.to_string(), [0xff; 400])).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (&**name, value.as_slice())).collect();
        add(&broker, &name, &many).await;
        send(&broker, queue, message("next")).await;

        let (worker, mut seen) = working(&limited, &subscription).await;
        assert_eq!(next(&mut seen).await, "next");
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while broker.depth(&subscription).await.expect("a depth").dead_lettered != Some(3) {
            assert!(std::time::Instant::now() < end, "three are given up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let report = worker.run_until(async {}).await.expect("a report");
        assert_eq!((report.handled, report.unsettled), (1, 0), "{report}");
        let all = DeadLetterFilter::all();
        let dead =
            limited.dead_letters(&subscription, &all, 9).await.expect("dead letters").entries;
        assert_eq!(dead.len(), 3);
        for letter in &dead {
            let failure = letter.failure().expect("a failure");
            assert_eq!((&*failure.reason, letter.hop.attempts), ("too-large", 0));
            assert!(failure.error.contains("max-payload is 1048576"), "{}", failure.error);
        }
        let cut = dead[0].envelope.headers.get("nativeheaders").expect("it is told of");
        assert!(cut.contains(r#""bytes":3145728"#) && cut.len() < 1000, "{cut}");
        let refused = limited.redrive(&subscription, &Redrive::all()).await;
        let refused = refused.expect_err("they are too large still").to_string();
        assert!(refused.contains("max-payload"), "{refused}");

        let sent = broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive");
        assert!(sent >= 2, "{sent} were sent back");
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        for _ in 0..3 {
            let delivery = receive(&mut consumer).await;
            let envelope = delivery.envelope();
            let native = envelope.headers.get("nativeheaders").expect("other fields");
            match &*envelope.id {
                "raw" => assert_eq!(native.len(), r#"{"raw":{"base64":""}}"#.len() + (4 << 20)),
                "image" => {
                    assert_eq!((&*envelope.payload, native), (&image[..], r#"{"user":"7"}"#));
                }
                _ => assert!(native.len() > 4000 * 400, "{} bytes", native.len()),
            }
            ack(delivery).await;
        }
    }
    limited.close().await.expect("a close");
    broker.close().await.expect("a close");
}
