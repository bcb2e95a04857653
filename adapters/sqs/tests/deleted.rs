//! What somebody deletes, or deletes and makes again, under a running and a stopped consumer.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, DeadLetterFilter, ErrorKind, Message, Outcome, Outgoing, Queue, Redrive, Subscription,
    Topic, Worker,
};
use anybroker_sqs::SqsBroker;
use support::{ack, both, consume, message, ministack, receive, send, settle, try_receive, unique};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

async fn delete_queue(broker: &SqsBroker, name: &str) {
    let found = broker.sqs().get_queue_url().queue_name(name).send().await.expect("a queue");
    let url = found.queue_url().expect("its URL");
    broker.sqs().delete_queue().queue_url(url).send().await.expect("deleted");
}

async fn exists(broker: &SqsBroker, name: &str) -> bool {
    broker.sqs().get_queue_url().queue_name(name).send().await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_dead_letter_queue_has_no_dead_letters() {
    for broker in both().await {
        let name = unique("half");
        let (subscription, dlq) = (Subscription::queue(name.clone()), format!("{name}--dlq"));
        broker.declare(&subscription).await.expect("declared");
        let mut consumer = consume(&broker, &subscription).await;
        delete_queue(&broker, &dlq).await;

        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!(depth.dead_lettered, Some(0));
        let all = DeadLetterFilter::all();
        let letters = broker.dead_letters(&subscription, &all, 10).await.expect("a look");
        assert!(letters.entries.is_empty() && letters.complete);
        assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive"), 0);
        assert_eq!(broker.purge_dead_letters(&subscription).await.expect("a purge"), 0);
        assert!(!exists(&broker, &dlq).await, "looking made it");

        // Who gives a message up makes it again.
        send(&broker, Queue::new(name), message("m0")).await;
        settle(receive(&mut consumer).await, Outcome::dead_letter("test", "")).await;
        let letters = broker.dead_letters(&subscription, &all, 10).await.expect("a look");
        assert_eq!(letters.entries.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_ends_its_consumer_and_is_made_again_by_the_next_one() {
    for broker in both().await {
        let name = unique("gone");
        let subscription = Subscription::queue(name.clone());
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, Queue::new(name.clone()), message("m0")).await;
        let held = receive(&mut consumer).await;
        // Past the time for which AWS may not know a new queue yet.
        tokio::time::sleep(Duration::from_secs(6)).await;
        delete_queue(&broker, &name).await;
        let ended = async {
            let mut out = Vec::new();
            loop {
                let next = std::future::poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
                if let Err(error) = next.await {
                    return error;
                }
            }
        };
        let error = timeout(Duration::from_secs(30), ended).await.expect("it ends");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        held.settle(Outcome::Ack).await.expect_err("it is gone");

        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, Queue::new(name), message("m1")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["m1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_when_its_queue_was_deleted() {
    for broker in both().await {
        let name = unique("again");
        let (see, mut ids) = mpsc::unbounded_channel();
        let handler = tower::service_fn(move |message: Message| {
            let _ = see.send(message.envelope().id.clone());
            std::future::ready(Ok::<_, std::convert::Infallible>(Outcome::Ack))
        });
        let worker = Worker::new(Arc::clone(&broker) as Arc<dyn Broker>);
        let worker = worker.subscribe(Subscription::queue(name.clone()), handler);
        let worker = worker.start().await.expect("a worker");
        send(&broker, Queue::new(name.clone()), message("before")).await;
        assert_eq!(ids.recv().await.as_deref(), Some("before"));
        delete_queue(&broker, &name).await;
        // The publisher knows the address of the queue that is gone.
        for number in 0..10 {
            send(&broker, Queue::new(name.clone()), message(&format!("m{number}"))).await;
        }
        let mut found = Vec::new();
        while found.len() < 10 {
            let next = timeout(Duration::from_mins(1), ids.recv()).await;
            found.extend(next.unwrap_or_else(|_| panic!("only {found:?}")));
        }
        found.sort();
        assert_eq!(found, (0..10).map(|number| format!("m{number}")).collect::<Vec<_>>());
        worker.run_until(async {}).await.expect("it ends");
    }
}

/// Publishes until something arrives.
async fn publish_until_received(
    broker: &SqsBroker,
    topic: &Topic,
    consumer: &mut Box<dyn anybroker_core::Consumer>,
) {
    let end = Instant::now() + Duration::from_mins(1);
    while Instant::now() < end {
        let sent = broker.producer().send(Outgoing::new(topic.clone(), message("after"))).await;
        let received = try_receive(consumer, Duration::from_millis(500)).await;
        if let Some(delivery) = received {
            assert!(sent.is_ok(), "{sent:?}");
            settle(delivery, Outcome::Ack).await;
            return;
        }
    }
    panic!("the group gets nothing any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_lost_its_subscription_or_topic_gets_events_again() {
    let broker = ministack().await;
    let sns = broker.sns().expect("there are topics");
    for what in ["subscription", "topic", "topic made again"] {
        let topic = Topic::new(unique("lost"));
        let subscription = Subscription::topic(topic.clone()).group("g");
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, topic.clone(), message("before")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["before"], "{what}");

        let arn = arn_of(&broker, &topic).await;
        if what == "subscription" {
            let list = sns.list_subscriptions_by_topic().topic_arn(&arn).send().await;
            let list = list.expect("subscriptions");
            let arn = list.subscriptions()[0].subscription_arn().expect("its ARN");
            sns.unsubscribe().subscription_arn(arn).send().await.expect("unsubscribed");
        } else {
            sns.delete_topic().topic_arn(&arn).send().await.expect("deleted");
        }
        if what == "topic made again" {
            let other = ministack().await;
            other.declare_destination(&topic.clone().into()).await.expect("made again");
        }
        publish_until_received(&broker, &topic, &mut consumer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_opened_again_subscribes_again() {
    let broker = ministack().await;
    let topic = Topic::new(unique("reopened"));
    let subscription = Subscription::topic(topic.clone()).group("g");
    let consumer = consume(&broker, &subscription).await;
    consumer.close().await.expect("closed");
    let sns = broker.sns().expect("there are topics");
    let arn = arn_of(&broker, &topic).await;
    sns.delete_topic().topic_arn(&arn).send().await.expect("deleted");
    let other = ministack().await;
    other.declare_destination(&topic.clone().into()).await.expect("made again");
    let mut consumer = consume(&broker, &subscription).await;
    send(&broker, topic, message("after")).await;
    assert_eq!(ack(&mut consumer, 1).await, ["after"]);
}

async fn arn_of(broker: &SqsBroker, topic: &Topic) -> String {
    let sns = broker.sns().expect("there are topics");
    let name = anybroker_core::Destination::from(topic.clone()).name().to_owned();
    let mut topics = sns.list_topics().into_paginator().items().send();
    while let Some(found) = topics.next().await {
        let arn = found.expect("a topic").topic_arn().expect("an ARN").to_owned();
        if arn.ends_with(&name) {
            return arn;
        }
    }
    panic!("there is no topic {name:?}");
}
