//! A group's own topics: their size, their beginning, their shape.

mod support;

use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, DeadLetterFilter, Envelope, ErrorKind, Message, Outcome, Outgoing, Queue,
    Redrive, Subscription, Worker,
};
use anybroker_kafka::rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use anybroker_kafka::rdkafka::client::DefaultClientContext;
use anybroker_kafka::rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use anybroker_kafka::rdkafka::{Offset, TopicPartitionList};
use support::{ack, connect_single, depth, id, receive, send, unique};

#[tokio::test(flavor = "multi_thread")]
async fn what_fitted_into_its_topic_fits_into_the_dead_letters_and_back() {
    let broker = connect_single().await;
    let queue = unique("largest");
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    // The topic takes 1 MiB with all that is around the payload.
    let payload = vec![b'x'; 1024 * 1024 - 100];
    let mut config = broker.client_config();
    let producer: BaseProducer =
        config.set("message.max.bytes", "2000000").create().expect("a producer");
    let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&queue).payload(&*payload);
    producer.send(record).expect("a queued message");
    producer.flush(Duration::from_secs(20)).expect("stored");
    let delivery = receive(&mut consumer).await;
    let given_up = Outcome::dead_letter("odd", "r".repeat(200));
    delivery.settle(given_up).await.expect("a dead letter");
    let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
    assert_eq!(letters.expect("letters").entries[0].envelope.payload.len(), payload.len());
    let sent = broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive");
    assert_eq!(sent, 1);
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.envelope().payload.len(), payload.len());
    ack(delivery).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_all_that_a_topic_takes_fit_or_its_group_is_refused() {
    const LARGE: usize = 4 * 1024 * 1024;
    let limit = LARGE.to_string();
    let broker = connect_single().await;
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let queue = unique("larger");
    let topic = NewTopic::new(&queue, 1, TopicReplication::Fixed(1));
    let topic = topic.set("max.message.bytes", &limit);
    let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let mut config = broker.client_config();
    let producer: BaseProducer =
        config.set("message.max.bytes", &limit).create().expect("a producer");
    let payload = vec![b'x'; LARGE * 3 / 4];
    let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&queue).payload(&*payload);
    producer.send(record).expect("a queued message");
    producer.flush(Duration::from_secs(20)).expect("stored");
    let delivery = receive(&mut consumer).await;
    delivery.settle(Outcome::Retry { after: Duration::ZERO }).await.expect("a copy");
    let delivery = receive(&mut consumer).await;
    assert_eq!((delivery.attempt(), delivery.envelope().payload.len()), (2, payload.len()));
    delivery.settle(Outcome::dead_letter("odd", "")).await.expect("a dead letter");
    let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
    assert_eq!(letters.expect("letters").entries.len(), 1);
    // Raised later, where its retry topic is not.
    let queue = unique("raised");
    let subscription = Subscription::queue(queue.clone());
    broker.declare(&subscription).await.expect("topics");
    let raised = AlterConfig::new(ResourceSpecifier::Topic(&queue));
    let raised = raised.set("max.message.bytes", &limit);
    let raised = admin.alter_configs([&raised], &AdminOptions::new()).await.expect("an answer");
    assert!(raised.iter().all(Result::is_ok), "{raised:?}");
    let broker = connect_single().await;
    let error = broker.consume(&subscription, 10).await.expect_err("copies would not fit");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains(&format!("{queue}--retry")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_retry_topic_begins_later_goes_on_there() {
    let broker = connect_single().await;
    let subscription = Subscription::queue(unique("trimmed"));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for number in 0..3 {
        let envelope = Envelope::new("number", "{}").with_id(number.to_string());
        send(&broker, subscription.destination().clone(), envelope).await;
        let delivery = receive(&mut consumer).await;
        let after = Duration::from_secs(2);
        delivery.settle(Outcome::Retry { after }).await.expect("a copy");
    }
    broker.close().await.expect("a closed broker");
    // As if a commit had been lost that said how much of it was finished.
    let broker = connect_single().await;
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    let retry = subscription.derived_name("retry");
    list.add_partition_offset(&retry, 0, Offset::Offset(2)).expect("an offset");
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted records");
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let delivery = receive(&mut consumer).await;
    assert_eq!(id(&delivery), "2");
    ack(delivery).await;
    depth(&broker, &subscription, |depth| (depth.ready, depth.delayed) == (Some(0), Some(0))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_in_more_than_one_partition_are_refused() {
    let broker = connect_single().await;
    let subscription = Subscription::queue(unique("shape"));
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let name = subscription.derived_name("dlq");
    let topic = NewTopic::new(&name, 2, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.expect("a topic");
    let error = broker.declare(&subscription).await.expect_err("letters would not be found");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("has 2 partitions, 1 "), "{error}");
}

/// Somebody deletes the topic of a running worker: what is published once it is there again comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_when_its_topic_was_deleted() {
    let broker = connect_single().await;
    let queue = unique("deleted");
    let (see, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let handler = tower::service_fn(move |message: Message| {
        let _ = see.send(message.envelope().id.clone());
        std::future::ready(Ok::<_, BoxError>(Outcome::Ack))
    });
    let worker = Worker::new(broker.clone()).subscribe(Subscription::queue(queue.clone()), handler);
    let running = worker.start().await.expect("a worker");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(running.run_until(stopped));
    let envelope = |id: &str| Envelope::new("t", "{}").with_id(id);
    send(&broker, Queue::new(queue.clone()), envelope("before")).await;
    assert_eq!(seen.recv().await.as_deref(), Some("before"));
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    admin.delete_topics(&[&queue], &AdminOptions::new()).await.expect("an answer");
    let goes_on = async {
        // What is published before the deletion is known may go with the topic.
        for number in 0.. {
            let outgoing = Outgoing::new(Queue::new(queue.clone()), envelope(&format!("{number}")));
            let sent =
                tokio::time::timeout(Duration::from_secs(5), broker.producer().send(outgoing));
            if let Ok(Ok(())) = sent.await
                && tokio::time::timeout(Duration::from_secs(3), seen.recv()).await.is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), goes_on).await.expect("it goes on");
    stop.send(()).expect("a worker");
    running.await.expect("no panic").expect("a report");
}
