use anybroker_core::{
    Broker, ErrorKind, Outcome, Outgoing, RetryClass, Start, Subscription, Topic,
};

use crate::receiver::*;

fn group(name: &'static str) -> Subscription {
    Subscription::topic("t").group(name)
}

#[tokio::test(start_paused = true)]
async fn every_group_gets_its_own_copy() {
    let broker = broker();
    let mut email = Receiver::open(&broker, &group("email")).await;
    let mut audit = Receiver::open(&broker, &group("audit")).await;
    publish(&broker, Topic::new("t"), &["a"]).await;
    email.expect("a").await.settle(Outcome::Ack).await.unwrap();
    assert_eq!(depth(&broker, &group("email")).await, [0, 0, 0, 0]);
    audit.expect("a").await.settle(retry(NOW)).await.unwrap();
    assert_eq!(audit.expect("a").await.attempt(), 2);
    email.expect_nothing_for(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn group_starts_at_its_creation() {
    let broker = broker();
    broker.declare(&group("email")).await.unwrap();
    publish(&broker, Topic::new("t"), &["a"]).await;
    broker.declare(&group("audit")).await.unwrap();
    publish(&broker, Topic::new("t"), &["b"]).await;
    Receiver::open(&broker, &group("audit")).await.expect("b").await;
    Receiver::open(&broker, &group("email")).await.expect("a").await;
}

#[tokio::test(start_paused = true)]
async fn topic_without_groups_is_unroutable_unless_allowed() {
    let broker = broker();
    let error = send(&broker, Topic::new("t"), message("a")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Unroutable, RetryClass::Permanent));
    assert!(error.to_string().starts_with("memory: publish: topic \"t\" has no group"), "{error}");

    let mut allowed = Outgoing::new(Topic::new("t"), message("b"));
    allowed.allow_unrouted = true;
    broker.producer().send(allowed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn earlier_messages_of_a_topic_are_unsupported() {
    let broker = broker();
    let earliest = group("email").start(Start::Earliest);
    assert_eq!(broker.declare(&earliest).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!broker.capabilities().start_earliest);
    broker.declare(&Subscription::queue("q").start(Start::Earliest)).await.unwrap();
}
