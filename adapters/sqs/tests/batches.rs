//! Batches: their limits, and a result for each of their messages.

mod support;

use anybroker_core::{
    Broker, DeadLetterFilter, Envelope, ErrorKind, Outcome, Outgoing, Queue, RetryClass,
    Subscription,
};
use aws_sdk_sqs::types::QueueAttributeName;
use support::{ack, both, consume, message, ministack, receive, send, unique};

#[tokio::test]
async fn entry_3_of_10_fails_and_the_others_do_not() {
    let broker = ministack().await;
    let name = unique("small");
    // A queue of somebody else, which takes smaller messages than the adapter's own.
    let create = broker.sqs().create_queue().queue_name(&name);
    let create = create.attributes(QueueAttributeName::MaximumMessageSize, "2048");
    create.send().await.expect("a queue");
    let queue = Queue::native(name);
    let producer = broker.producer();
    // While this one is under way the others gather in one batch.
    let first = producer.send(Outgoing::new(queue.clone(), message("first")));
    let sends: Vec<_> = (0..10)
        .map(|number| {
            let size = if number == 3 { 3000 } else { 10 };
            let envelope = Envelope::new("t", vec![b'a'; size]).with_id(format!("m{number}"));
            producer.send(Outgoing::new(queue.clone(), envelope))
        })
        .collect();
    first.await.expect("stored");
    for (number, send) in sends.into_iter().enumerate() {
        match (number, send.await) {
            (3, Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
                assert_eq!(error.retry_class(), RetryClass::Permanent);
            }
            (3, Ok(())) => panic!("what was refused counts as stored"),
            (_, result) => result.expect("what was stored counts as refused"),
        }
    }
    let mut consumer = consume(&broker, &Subscription::queue(queue)).await;
    let mut ids = ack(&mut consumer, 10).await;
    ids.sort();
    assert_eq!(ids, ["first", "m0", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "m9"]);
}

#[tokio::test]
async fn thirteen_messages_of_100_kib_at_once_arrive() {
    for broker in both().await {
        let queue = Queue::new(unique("large"));
        let producer = broker.producer();
        let sends: Vec<_> = (0..13)
            .map(|number| {
                let envelope = Envelope::new("t", vec![b'a'; 100 * 1024]);
                let envelope = envelope.with_id(format!("m{number:02}"));
                producer.send(Outgoing::new(queue.clone(), envelope))
            })
            .collect();
        for send in sends {
            send.await.expect("stored");
        }
        let mut consumer = consume(&broker, &Subscription::queue(queue)).await;
        let mut ids = ack(&mut consumer, 13).await;
        ids.sort();
        assert_eq!(ids, (0..13).map(|number| format!("m{number:02}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_topic_takes_less_than_a_queue_and_says_so() {
    let broker = ministack().await;
    let topic = anybroker_core::Topic::new(unique("topic"));
    let subscription = Subscription::topic(topic.clone()).group("one");
    broker.declare(&subscription).await.expect("declared");
    let largest = (256 - 64) * 1024 / 4 * 3;
    send(&broker, topic.clone(), Envelope::new("t", vec![0; largest]).with_id("fits")).await;
    let larger = Outgoing::new(topic, Envelope::new("t", vec![0; largest + 1]));
    let error = broker.producer().send(larger).await.expect_err("it is too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    let mut consumer = consume(&broker, &subscription).await;
    assert_eq!(ack(&mut consumer, 1).await, ["fits"]);
}

#[tokio::test]
async fn what_is_accepted_can_be_given_up() {
    for broker in both().await {
        let largest = broker.capabilities().max_payload;
        let subscription = Subscription::queue(unique("brimful"));
        let destination = subscription.destination().clone();
        let mut consumer = consume(&broker, &subscription).await;
        // JSON writes each of them as two. The library takes 44 KiB.
        for quotes in [32_000, 32_200, 32_400, 32_600, 32_674, 45_000] {
            let envelope = Envelope::new("t", vec![0xff; largest]);
            let envelope = envelope.with_header("h", "\"".repeat(quotes)).expect("a header");
            let outgoing = Outgoing::new(destination.clone(), envelope);
            if let Err(error) = broker.producer().send(outgoing).await {
                assert_eq!(error.kind(), ErrorKind::TooLarge, "{quotes}: {error}");
                continue;
            }
            let delivery = receive(&mut consumer).await;
            let given_up = Outcome::dead_letter("r".repeat(64), "\u{0}".repeat(4096));
            delivery.settle(given_up).await.expect("what was accepted can be given up");
            let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
            assert_eq!(letters.expect("a look").entries.len(), 1, "{quotes}");
            let purged = broker.purge_dead_letters(&subscription).await.expect("a purge");
            assert_eq!(purged, 1, "{quotes}");
        }
    }
}
