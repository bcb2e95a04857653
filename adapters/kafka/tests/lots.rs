//! A message that its topic does not take, among those that it takes.

mod support;

use anybroker_core::{
    Broker, DeadLetterFilter, Envelope, ErrorKind, Outcome, Outgoing, Redrive, RetryClass,
    Subscription, Topic,
};
use anybroker_kafka::KafkaBroker;
use anybroker_kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use anybroker_kafka::rdkafka::client::DefaultClientContext;
use support::{ack, builder, connect_single, id, receive, send, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_its_topic_is_told_from_those_beside_it() {
    // As the topic's, which is one for whole batches.
    let builder = builder().partitions(1).max_payload(100_000);
    let broker = builder.connect().await.expect("a connection");
    let queue = unique("small");
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let topic = NewTopic::new(&queue, 1, TopicReplication::Fixed(1));
    let topic = topic.set("max.message.bytes", "100000");
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let subscription = Subscription::queue(queue);
    let mut consumer = broker.consume(&subscription, 200).await.expect("a consumer");
    let producer = broker.producer();
    let sends: Vec<_> = (0..100)
        .map(|number| {
            let payload = vec![b'x'; if number == 4 { 50_000 } else { 5000 }];
            let envelope = Envelope::new("t", payload).with_id(number.to_string());
            producer.send(Outgoing::new(subscription.destination().clone(), envelope))
        })
        .collect();
    for (number, sent) in sends.into_iter().enumerate() {
        let found = sent.await.map_err(|error| (error.kind(), error.retry_class()));
        let refusal = Err((ErrorKind::TooLarge, RetryClass::Permanent));
        assert_eq!(found, if number == 4 { refusal } else { Ok(()) }, "{number}");
    }
    for number in (0..100).filter(|number| *number != 4) {
        let delivery = receive(&mut consumer).await;
        assert_eq!(id(&delivery), number.to_string());
        assert_eq!(delivery.envelope().payload, vec![b'x'; 5000]);
        ack(delivery).await;
    }
}

/// Makes a topic, of one partition, that takes nothing without a key.
async fn compacted(broker: &KafkaBroker, name: &str) {
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    let topic = topic.set("cleanup.policy", "compact").set("max.message.bytes", "3000000");
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_refused_takes_none_along_that_was_sent_with_it() {
    let broker = connect_single().await;
    let topic = unique("compacted");
    compacted(&broker, &topic).await;
    let subscription = Subscription::topic(Topic::new(topic.clone())).group("one");
    let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
    let producer = broker.producer();
    let sends: Vec<_> = (0..20)
        .map(|number| {
            let mut envelope = Envelope::new("t", "{}").with_id(number.to_string());
            if number != 8 {
                envelope = envelope.with_key(format!("key {number}"));
            }
            producer.send(Outgoing::new(Topic::new(topic.clone()), envelope))
        })
        .collect();
    for (number, sent) in sends.into_iter().enumerate() {
        let found = sent.await.map_err(|error| (error.kind(), error.retry_class()));
        let refusal = Err((ErrorKind::Invalid, RetryClass::Permanent));
        assert_eq!(found, if number == 8 { refusal } else { Ok(()) }, "{number}");
    }
    // What was sent in a later batch may be stored before those that are sent once more.
    let mut found = Vec::new();
    for _ in (0..20).filter(|number| *number != 8) {
        let delivery = receive(&mut consumer).await;
        found.push(id(&delivery).parse::<u32>().expect("a number"));
        ack(delivery).await;
    }
    found.sort_unstable();
    assert_eq!(found, (0..20).filter(|number| *number != 8).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_refused_takes_none_along() {
    let broker = connect_single().await;
    let topic = Topic::new(unique("refused"));
    let subscription = Subscription::topic(topic.clone()).group("one");
    // It was made by other means, and keeps the last retry of each key alone.
    compacted(&broker, &subscription.derived_name("retry")).await;
    let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
    for number in 0..5 {
        let mut envelope = Envelope::new("t", "{}").with_id(number.to_string());
        if number != 2 {
            envelope = envelope.with_key(format!("key {number}"));
        }
        send(&broker, topic.clone(), envelope).await;
        let delivery = receive(&mut consumer).await;
        delivery.settle(Outcome::dead_letter("odd", "")).await.expect("a dead letter");
    }
    let error = broker.redrive(&subscription, &Redrive::all()).await.expect_err("one is refused");
    let found = (error.kind(), error.retry_class());
    assert_eq!(found, (ErrorKind::Invalid, RetryClass::Permanent), "{error}");
    assert!(error.to_string().contains("4 letters were sent back"), "{error}");
    for number in [0, 1, 3, 4] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(id(&delivery), number.to_string());
        ack(delivery).await;
    }
    let left = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
    let left = left.expect("letters").entries;
    assert_eq!(left.iter().map(|letter| &*letter.envelope.id).collect::<Vec<_>>(), ["2"]);
}
