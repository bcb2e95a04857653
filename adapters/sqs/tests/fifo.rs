//! FIFO: the order of a key, and copies that de-duplication must not swallow.

mod support;

use std::time::Duration;

use anybroker_core::{
    Broker, DeadLetterFilter, ErrorKind, Outcome, Queue, Redrive, Subscription, Topic,
};
use support::{ack, both, consume, message, ministack, receive, send, settle, try_receive, unique};

#[tokio::test]
async fn a_group_waits_while_its_head_is_retried() {
    for broker in both().await {
        let queue = Queue::new(unique("blocked")).ordered();
        let subscription = Subscription::queue(queue.clone());
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, queue.clone(), message("first").with_key("first")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["first"]);
        // Until the receive under way has ended: the next one takes the three together.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for id in ["a0", "a1", "a2"] {
            send(&broker, queue.clone(), message(id).with_key("a")).await;
        }
        let head = receive(&mut consumer).await;
        assert_eq!(head.envelope().id, "a0");
        let follower = receive(&mut consumer).await;
        settle(head, Outcome::Retry { after: Duration::from_secs(3) }).await;
        assert!(follower.is_lost(), "it would pass the one before it");
        let error = follower.settle(Outcome::Ack).await.expect_err("it would pass");
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
        send(&broker, queue, message("b0").with_key("b")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["b0"], "another key passes");
        assert!(try_receive(&mut consumer, Duration::from_millis(700)).await.is_none());
        assert_eq!(ack(&mut consumer, 3).await, ["a0", "a1", "a2"]);
    }
}

#[tokio::test]
async fn retry_dead_letter_and_redrive_of_one_message_all_arrive_within_minutes() {
    for broker in both().await {
        let queue = Queue::new(unique("again")).ordered();
        let subscription = Subscription::queue(queue.clone());
        send(&broker, queue, message("m0").with_key("k")).await;
        let mut consumer = consume(&broker, &subscription).await;
        for round in 0..3 {
            let retry = Outcome::Retry { after: Duration::ZERO };
            settle(receive(&mut consumer).await, retry).await;
            let error = format!("round {round}");
            settle(receive(&mut consumer).await, Outcome::dead_letter("test", &*error)).await;
            let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
            let letters = letters.expect("an answer").entries;
            assert_eq!(letters.len(), 1, "round {round}");
            assert_eq!(letters[0].failure().expect("a failure").error, error);
            let redriven = broker.redrive(&subscription, &Redrive::all()).await;
            assert_eq!(redriven.expect("redriven"), 1);
        }
        let last = receive(&mut consumer).await;
        assert_eq!((&*last.envelope().id, last.envelope().key.as_deref()), ("m0", Some("k")));
        settle(last, Outcome::Ack).await;
        assert!(try_receive(&mut consumer, Duration::from_millis(500)).await.is_none());
    }
}

#[tokio::test]
async fn the_same_message_published_twice_is_stored_once() {
    for broker in both().await {
        let queue = Queue::new(unique("twice")).ordered();
        for _ in 0..2 {
            send(&broker, queue.clone(), message("m0").with_key("two words")).await;
        }
        let mut consumer = consume(&broker, &Subscription::queue(queue)).await;
        assert_eq!(ack(&mut consumer, 1).await, ["m0"]);
        assert!(try_receive(&mut consumer, Duration::from_millis(500)).await.is_none());
    }
}

#[tokio::test]
async fn messages_without_key_wait_for_nobody() {
    for broker in both().await {
        let queue = Queue::new(unique("keyless")).ordered();
        for id in ["m0", "m1"] {
            send(&broker, queue.clone(), message(id)).await;
        }
        let mut consumer = consume(&broker, &Subscription::queue(queue)).await;
        let held = receive(&mut consumer).await;
        assert_eq!(held.envelope().key, None);
        assert_eq!(ack(&mut consumer, 1).await.len(), 1);
        settle(held, Outcome::Ack).await;
    }
}

#[tokio::test]
async fn a_shape_that_is_not_the_stored_one_is_refused_with_both() {
    let broker = ministack().await;
    let name = unique("shape");
    let plain = Topic::new(name.clone());
    broker.declare_destination(&plain.clone().into()).await.expect("declared");
    let error = broker.declare_destination(&plain.ordered().into()).await.expect_err("ordered");
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let text = error.to_string();
    assert!(
        text.contains(&format!("{name:?}")) && text.contains(&format!("{name}.fifo")),
        "{text}"
    );
}
