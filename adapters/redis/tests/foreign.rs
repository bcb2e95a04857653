//! Messages of others, and ours as others see them.

mod support;

use std::collections::HashMap;

use anybroker_core::{Broker, DeadLetterFilter, Outcome, Queue, Redrive, Subscription};
use anybroker_redis::redis::cmd;
use support::{ack, connect, message, receive, run, send, server, unique};

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
    assert_eq!(envelope.headers.get("nativeheaders"), Some(r#"{"raw":[0,255],"user":"7"}"#));
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
