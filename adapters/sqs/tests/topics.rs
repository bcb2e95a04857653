//! Topics: what was deleted underneath, and groups that get nothing.

mod support;

use anybroker_core::{Broker, Destination, ErrorKind, Outgoing, Subscription, Topic};
use support::{ack, connect, consume, message, ministack, send, unique};

#[tokio::test]
async fn a_publish_to_a_deleted_topic_fails_until_it_is_declared_again() {
    let broker = ministack().await;
    let topic = Topic::new(unique("deleted"));
    let subscription = Subscription::topic(topic.clone()).group("g");
    broker.declare(&subscription).await.expect("declared");
    send(&broker, topic.clone(), message("m0")).await;
    delete(&broker, &topic).await;

    for _ in 0..2 {
        let sent = broker.producer().send(Outgoing::new(topic.clone(), message("m1"))).await;
        assert_eq!(sent.expect_err("nobody gets it").kind(), ErrorKind::NotFound);
    }
    broker.declare(&subscription).await.expect("declared again");
    send(&broker, topic, message("m2")).await;
    let mut consumer = consume(&broker, &subscription).await;
    let mut ids = ack(&mut consumer, 2).await;
    ids.sort();
    assert_eq!(ids, ["m0", "m2"]);
}

#[tokio::test]
async fn a_group_that_is_not_subscribed_is_not_found() {
    let broker = ministack().await;
    let topic = Topic::new(unique("unsubscribed"));
    let subscription = Subscription::topic(topic.clone()).group("g");
    broker.declare(&subscription).await.expect("declared");
    let url = std::env::var("ANYBROKER_SQS_URL").expect("the server's URL");
    let verifying = format!("{url}?declare=verify");
    connect(&verifying).await.declare(&subscription).await.expect("it is subscribed");

    delete(&broker, &topic).await;
    broker.declare_destination(&topic.into()).await.expect("declared again");
    let error = connect(&verifying).await.declare(&subscription).await.expect_err("unsubscribed");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

async fn delete(broker: &anybroker_sqs::SqsBroker, topic: &Topic) {
    let sns = broker.sns().expect("there are topics");
    let mut topics = sns.list_topics().into_paginator().items().send();
    while let Some(found) = topics.next().await {
        let found = found.expect("a topic");
        let arn = found.topic_arn().expect("an ARN");
        if arn.ends_with(Destination::from(topic.clone()).name()) {
            sns.delete_topic().topic_arn(arn).send().await.expect("deleted");
        }
    }
}
