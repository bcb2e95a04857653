//! What becomes of messages that cannot be stored, each told from its neighbours.

mod support;

use std::time::Duration;

use anybroker_core::{
    Broker, Destination, Envelope, ErrorKind, Outgoing, Queue, RetryClass, Subscription, Topic,
};
use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion};
use support::{ack, connect, delete, parse, receive, send, servers, unique};

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_from_those_beside_them() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let bound = Subscription::topic(unique("bound")).group("one");
        broker.declare(&bound).await.expect("a group");
        let unbound = Destination::topic(unique("unbound"));
        let producer = broker.producer();
        let sends: Vec<_> = (0..2000)
            .map(|number| {
                let is_lost = number % 3 == 0;
                let to = if is_lost { unbound.clone() } else { bound.destination().clone() };
                // Every id comes twice in a row: once for each destination.
                let envelope = Envelope::new("t", "x").with_id(format!("{}", number / 2));
                (is_lost, producer.send(Outgoing::new(to, envelope)))
            })
            .collect();
        for (number, (is_lost, sent)) in sends.into_iter().enumerate() {
            let kind = sent.await.map_err(|error| error.kind());
            let expected = if is_lost { Err(ErrorKind::Unroutable) } else { Ok(()) };
            assert_eq!(kind, expected, "{server}: message {number}");
        }
        let depth = broker.depth(&bound).await.expect("a depth");
        assert_eq!(depth.ready, Some(1333), "{server}");
        let mut swallowed = Outgoing::new(unbound, Envelope::new("t", "x"));
        swallowed.allow_unrouted = true;
        producer.send(swallowed).await.expect("it is allowed to");
        delete(&broker, &bound).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_declared_otherwise_is_an_error_that_shows_both() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let name = unique("shape");
        let plain = Subscription::queue(name.clone());
        broker.declare(&plain).await.expect("a queue");
        let ordered = Destination::from(Queue::new(name.clone()).ordered());
        let other = connect(&url).await;
        let error = other.declare_destination(&ordered).await.expect_err("a mismatch");
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{server}: {error}");
        let text = error.to_string();
        assert!(text.contains(": ordered queue") && text.contains(": unordered queue"), "{text}");
        assert!(text.contains("received") && text.contains("current is"), "{text}");

        let topic = Destination::topic(name);
        let error = other.declare_destination(&topic).await.expect_err("it is a queue");
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{server}: {error}");
        let topic = Subscription::topic(unique("topic")).group("one");
        broker.declare(&topic).await.expect("a topic");
        let queue = Destination::queue(topic.destination().name().to_owned());
        let error = other.declare_destination(&queue).await.expect_err("it is a topic");
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{server}: {error}");
        // What failed harmed nobody else.
        send(&broker, plain.destination().clone(), Envelope::new("t", "x")).await;
        delete(&broker, &plain).await;
        delete(&broker, &topic).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_declared_again() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let queue = Subscription::queue(unique("deleted"));
        send(&broker, queue.destination().clone(), Envelope::new("t", "1")).await;
        let mut consumer = broker.consume(&queue, 10).await.expect("a consumer");
        ack(receive(&mut consumer).await).await;
        delete(&broker, &queue).await;
        let sent = async {
            let outgoing = Outgoing::new(queue.destination().clone(), Envelope::new("t", "2"));
            while let Err(error) = broker.producer().send(outgoing.clone()).await {
                assert_eq!(error.kind(), ErrorKind::Unroutable, "{server}");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), sent).await.expect("it is there again");
        // RabbitMQ 3.10 may keep the old consumer, and hold as many messages back from it as it had
        // seen before, until its channel ends: another queue numbers its messages anew.
        drop(consumer);
        let mut consumer = broker.consume(&queue, 10).await.expect("another consumer");
        ack(receive(&mut consumer).await).await;
        drop(consumer);
        delete(&broker, &queue).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_no_frame_carries_are_refused_before_they_end_the_connection() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let queue = Subscription::queue(unique("headers"));
        let envelope = Envelope::new("t", "x").with_header("native", "x".repeat(43 * 1024));
        send(&broker, queue.destination().clone(), envelope.expect("a header")).await;
        let mut consumer = broker.consume(&queue, 10).await.expect("a consumer");
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.envelope().headers.get("native").map(str::len), Some(43 * 1024));
        ack(delivery).await;
        // Nothing else may write it, so that it may be of any size.
        let mut large = Envelope::new("t", "x");
        large.headers.insert("nativeheaders", "x".repeat(200 * 1024)).expect("a header");
        let sent = broker.producer().send(Outgoing::new(queue.destination().clone(), large)).await;
        assert_eq!(sent.expect_err("too large").kind(), ErrorKind::Invalid, "{server}");
        send(&broker, queue.destination().clone(), Envelope::new("t", "y")).await;
        ack(receive(&mut consumer).await).await;
        drop(consumer);
        delete(&broker, &queue).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks_publishers_still_takes_acknowledgements() {
    for version in [RabbitMqVersion::V3_10, RabbitMqVersion::V4_3] {
        let launched = tokio::task::spawn_blocking(move || RabbitMq::new(version).launch());
        let server = launched.await.expect("no panic").expect("a server");
        let url = parse(&format!("{}?publish-timeout=2s", server.url()));
        let broker = anybroker_rabbitmq::connect(url).await.expect("a connection");
        let topic = Subscription::topic("t").group("g");
        let mut consumer = broker.consume(&topic, 10).await.expect("a consumer");
        send(&broker, Topic::new("t"), Envelope::new("t", "before")).await;
        let held = receive(&mut consumer).await;
        server.exec(&["rabbitmqctl", "set_vm_memory_high_watermark", "0"]).expect("an alarm");
        let producer = broker.producer();
        let send = || producer.send(Outgoing::new(Topic::new("t"), Envelope::new("t", "blocked")));
        // The first ones are written before the broker says that it blocks.
        let mut kinds = Vec::new();
        for _ in 0..20 {
            let error = send().await.expect_err("it is blocked");
            kinds.push((error.kind(), error.retry_class()));
            if kinds.last() == Some(&(ErrorKind::Blocked, RetryClass::Transient)) {
                break;
            }
        }
        assert_eq!(kinds.last(), Some(&(ErrorKind::Blocked, RetryClass::Transient)), "{kinds:?}");
        assert!(
            kinds.iter().rev().skip(1).all(|kind| kind.1 == RetryClass::Ambiguous),
            "{kinds:?}"
        );
        ack(held).await;
        let waiting = send();
        server.exec(&["rabbitmqctl", "set_vm_memory_high_watermark", "0.6"]).expect("no alarm");
        if let Err(error) = waiting.await {
            // The end of the alarm may take longer than the publish may.
            assert_eq!(error.kind(), ErrorKind::Blocked);
            while send().await.is_err() {}
        }
        ack(receive(&mut consumer).await).await;
        drop(consumer);
        tokio::task::spawn_blocking(move || server.stop()).await.expect("no panic");
    }
}
