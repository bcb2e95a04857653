//! Messages of others: plain ones, CloudEvents, and what SQS itself moved.

mod support;

use std::future::poll_fn;
use std::time::Duration;

use anybroker_core::{
    Broker, DeadLetterFilter, ErrorKind, Outcome, Queue, Redrive, RetryClass, Subscription, Topic,
};
use aws_sdk_sqs::types::MessageAttributeValue;
use support::{ack, both, consume, message, ministack, receive, send, settle, unique};
use tokio::time::timeout;

#[tokio::test]
async fn a_plain_message_is_delivered_and_retried_as_it_is() {
    for broker in both().await {
        let name = unique("plain");
        let subscription = Subscription::queue(name.clone());
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let attribute = |kind: &str, text: &str| {
            let value = MessageAttributeValue::builder().data_type(kind).string_value(text);
            value.build().expect("it has a type")
        };
        let send = broker.sqs().send_message().queue_url(url).message_body("hello, größe");
        let send = send.message_attributes("Tenant", attribute("String", "acme"));
        send.message_attributes("retries", attribute("Number", "3")).send().await.expect("sent");
        let mut consumer = consume(&broker, &subscription).await;
        for attempt in 1..=3 {
            let delivery = receive(&mut consumer).await;
            let envelope = delivery.envelope();
            assert_eq!(delivery.attempt(), attempt);
            assert_eq!((&*envelope.r#type, &*envelope.content_type), (&*name, "text/plain"));
            assert_eq!(envelope.payload, "hello, größe".as_bytes());
            let native = envelope.headers.get("nativeheaders");
            assert_eq!(native, Some(r#"{"Tenant":"acme","retries":"3"}"#));
            let again = Outcome::Retry { after: Duration::ZERO };
            settle(delivery, if attempt < 3 { again } else { Outcome::Ack }).await;
        }
    }
}

#[tokio::test]
async fn an_event_of_another_sdk_comes_through_a_queue_and_a_topic() {
    let broker = ministack().await;
    let event = r#"{"specversion":"1.0","id":"e1","source":"/python","type":"order.created",
        "subject":"7","datacontenttype":"application/json","data":{"order_id":"7"}}"#;
    let queue = Subscription::queue(unique("event"));
    let url = broker.queue_url(&queue).await.expect("a URL");
    broker.sqs().send_message().queue_url(url).message_body(event).send().await.expect("sent");
    let topic = Topic::new(unique("event"));
    let group = Subscription::topic(topic.clone()).group("one");
    broker.declare(&group).await.expect("declared");
    let sns = broker.sns().expect("it has SNS");
    let topics = sns.list_topics().into_paginator().items().send();
    let name = anybroker_core::Destination::from(topic).name().to_owned();
    let topics = topics.collect::<Result<Vec<_>, _>>().await.expect("a list");
    let arn = topics.iter().filter_map(|topic| topic.topic_arn()).find(|arn| arn.ends_with(&name));
    sns.publish().topic_arn(arn.expect("the topic")).message(event).send().await.expect("sent");
    for subscription in [queue, group] {
        let mut consumer = consume(&broker, &subscription).await;
        let delivery = receive(&mut consumer).await;
        let envelope = delivery.envelope();
        assert_eq!((&*envelope.id, &*envelope.r#type), ("e1", "order.created"));
        assert_eq!(envelope.headers.get("subject"), Some("7"));
        assert_eq!(envelope.payload, &br#"{"order_id":"7"}"#[..]);
        settle(delivery, Outcome::Ack).await;
    }
}

#[tokio::test]
async fn what_others_read_is_a_cloud_event() {
    for broker in both().await {
        let queue = Queue::new(unique("read"));
        let subscription = Subscription::queue(queue.clone());
        send(&broker, queue, message("m0").with_key("k")).await;
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let received =
            broker.sqs().receive_message().queue_url(url).send().await.expect("received");
        let body = received.messages()[0].body().expect("a body");
        let event: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(event["specversion"], "1.0");
        assert_eq!((&event["id"], &event["partitionkey"]), (&"m0".into(), &"k".into()));
        assert_eq!(event["data"]["id"], "m0");
    }
}

/// As its redrive policy does, with the message as it was.
#[tokio::test]
async fn what_sqs_itself_moved_is_listed_and_sent_back() {
    for broker in both().await {
        let name = unique("moved");
        let subscription = Subscription::queue(name.clone());
        broker.declare(&subscription).await.expect("declared");
        let url = broker.sqs().get_queue_url().queue_name(format!("{name}--dlq")).send().await;
        let send = broker.sqs().send_message().set_queue_url(url.expect("a queue").queue_url);
        send.message_body("{\"order\":7}").send().await.expect("sent");
        let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
        let letters = letters.expect("an answer").entries;
        assert_eq!(letters.len(), 1);
        assert!(letters[0].failure().is_none());
        let id = letters[0].envelope.id.clone();
        assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("redriven"), 1);
        let mut consumer = consume(&broker, &subscription).await;
        assert_eq!(ack(&mut consumer, 1).await, [id]);
    }
}

#[tokio::test]
async fn what_was_deleted_is_declared_again() {
    let broker = ministack().await;
    let queue = Queue::new(unique("deleted"));
    let subscription = Subscription::queue(queue.clone());
    send(&broker, queue.clone(), message("before")).await;
    let url = broker.queue_url(&subscription).await.expect("a URL");
    broker.sqs().delete_queue().queue_url(url).send().await.expect("deleted");
    send(&broker, queue, message("after")).await;
    let mut consumer = consume(&broker, &subscription).await;
    assert_eq!(ack(&mut consumer, 1).await, ["after"]);
}

/// As a worker does, which opens another consumer when one has ended.
#[tokio::test]
async fn consuming_goes_on_when_the_queue_was_deleted_under_a_consumer() {
    for broker in both().await {
        let subscription = Subscription::queue(unique("deleted"));
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, subscription.destination().clone(), message("before")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["before"]);
        let url = broker.queue_url(&subscription).await.expect("a URL");
        broker.sqs().delete_queue().queue_url(url).send().await.expect("deleted");
        let ends = async {
            loop {
                let mut out = Vec::new();
                match poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out)).await {
                    Err(error) if error.retry_class() == RetryClass::Permanent => return error,
                    // What was under way may end otherwise.
                    Err(_) => {}
                    Ok(()) => panic!("nothing is there: {out:?}"),
                }
            }
        };
        let error = timeout(Duration::from_secs(10), ends).await.expect("it ends");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, subscription.destination().clone(), message("after")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["after"]);
    }
}

#[tokio::test]
async fn what_is_too_large_to_be_stored_anew_goes_back_and_is_given_up_as_it_is() {
    for broker in both().await {
        let subscription = Subscription::queue(unique("largest"));
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let body = "a".repeat(1024 * 1024);
        broker.sqs().send_message().queue_url(url).message_body(body).send().await.expect("sent");
        let mut consumer = consume(&broker, &subscription).await;
        let given_up = Outcome::dead_letter("test", "it is too large");
        for (attempt, outcome) in
            [(1, Outcome::Retry { after: Duration::ZERO }), (2, given_up), (1, Outcome::Ack)]
        {
            if attempt == 1 {
                // What was given up before.
                let _ = broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive");
            }
            let delivery = receive(&mut consumer).await;
            assert_eq!((delivery.envelope().payload.len(), delivery.attempt()), (1 << 20, attempt));
            settle(delivery, outcome).await;
        }
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!(
            (depth.ready, depth.in_flight, depth.dead_lettered),
            (Some(0), Some(0), Some(0))
        );
    }
}

#[tokio::test]
async fn what_a_topic_has_wrapped_is_delivered_as_it_was_published() {
    let event =
        r#"{"specversion":"1.0","id":"e1","source":"/python","type":"order.created","data":7}"#;
    let wrapped = |message: &str, attributes: serde_json::Value| {
        serde_json::json!({
            "Type": "Notification",
            "MessageId": "n1",
            "TopicArn": "arn:aws:sns:us-east-1:000000000000:orders",
            "Message": message,
            "Timestamp": "2026-11-30T00:00:00.000Z",
            "MessageAttributes": attributes,
        })
        .to_string()
    };
    let tenant = serde_json::json!({"Tenant": {"Type": "String", "Value": "acme"}});
    for broker in both().await {
        let subscription = Subscription::queue(unique("wrapped"));
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let mut consumer = consume(&broker, &subscription).await;
        let mut passed = async |body: String| {
            let send = broker.sqs().send_message().queue_url(&*url).message_body(body);
            send.send().await.expect("sent");
            let delivery = receive(&mut consumer).await;
            let envelope = delivery.envelope().clone();
            settle(delivery, Outcome::Ack).await;
            envelope
        };
        let own = passed(wrapped(event, serde_json::json!({}))).await;
        assert_eq!((&*own.id, &*own.r#type, &own.payload[..]), ("e1", "order.created", &b"7"[..]));
        let plain = passed(wrapped("hello", tenant.clone())).await;
        assert_eq!((&*plain.id, &*plain.content_type), ("n1", "text/plain"));
        assert_eq!(plain.payload, &b"hello"[..]);
        assert_eq!(plain.headers.get("nativeheaders"), Some(r#"{"Tenant":"acme"}"#));
        // Almost one, and so somebody's own.
        let other = wrapped("hello", tenant.clone()).replace("Notification", "Reminder");
        assert_eq!(passed(other.clone()).await.payload, other.as_bytes());
    }
}
