//! A message that its topic does not take, among those that it takes.

mod support;

use anybroker_core::{Broker, Envelope, ErrorKind, Outgoing, RetryClass, Subscription};
use anybroker_kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use anybroker_kafka::rdkafka::client::DefaultClientContext;
use support::{ack, builder, id, receive, unique};

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
