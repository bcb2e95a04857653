use anybroker_core::{Broker, Outcome, Queue, Subscription};

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

#[tokio::test(start_paused = true)]
async fn queue_keeps_in_order_what_was_sent_before_its_first_consumer() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let batch = receiver.ready().await;
    assert_eq!(ids(&batch), ["a", "b", "c"]);
    assert!(batch.iter().all(|delivery| delivery.attempt() == 1));
}

#[tokio::test(start_paused = true)]
async fn each_message_goes_to_one_of_the_competing_consumers() {
    let broker = broker();
    let mut first = Receiver::with_prefetch(&broker, &queue(), 2).await;
    let mut second = Receiver::open(&broker, &queue()).await;
    publish(&broker, Queue::new("q"), &["a", "b", "c"]).await;
    let (firsts, seconds) = (first.ready().await, second.ready().await);
    assert_eq!((ids(&firsts), ids(&seconds)), (vec!["a", "b"], vec!["c"]));
}

#[tokio::test(start_paused = true)]
async fn acknowledged_message_is_gone() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let delivery = receiver.one().await;
    assert_eq!(depth(&broker, &queue()).await, [0, 1, 0, 0]);
    delivery.settle(Outcome::Ack).await.unwrap();
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 0, 0]);
    receiver.expect_nothing_for(SECOND * 3600).await;
}

#[tokio::test(start_paused = true)]
async fn prefetch_bounds_what_is_unsettled_and_a_settlement_makes_room() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c"]).await;
    let mut receiver = Receiver::with_prefetch(&broker, &queue(), 2).await;
    let mut held = receiver.ready().await;
    assert_eq!(ids(&held), ["a", "b"]);
    receiver.expect_nothing_for(SECOND).await;

    let waiting = tokio::spawn(async move { receiver.one().await });
    tokio::task::yield_now().await;
    held.remove(0).settle(Outcome::Ack).await.unwrap();
    assert_eq!(waiting.await.unwrap().envelope().id, "c");
}

#[tokio::test(start_paused = true)]
async fn receive_takes_at_most_what_was_asked_for() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    assert_eq!(receiver.receive(0).await.unwrap().len(), 0);
    assert_eq!(receiver.receive(2).await.unwrap().len(), 2);
    assert_eq!(receiver.receive(64).await.unwrap().len(), 3, "the dropped ones came back");
}

#[tokio::test(start_paused = true)]
async fn dropped_deliveries_come_back_at_once_in_order_as_the_next_attempt() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c", "d"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    drop(receiver.receive(3).await.unwrap());
    let again = receiver.ready().await;
    assert_eq!(ids(&again), ["a", "b", "c", "d"]);
    let attempts: Vec<_> = again.iter().map(anybroker_core::Delivery::attempt).collect();
    assert_eq!(attempts, [2, 2, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn released_message_keeps_its_place_and_its_attempt() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    for delivery in receiver.receive(2).await.unwrap() {
        delivery.settle(release(NOW)).await.unwrap();
    }
    let again = receiver.ready().await;
    assert_eq!(ids(&again), ["a", "b", "c"]);
    assert!(again.iter().all(|delivery| delivery.attempt() == 1));
}

#[tokio::test(start_paused = true)]
async fn retried_message_goes_behind_the_others_and_counts() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    receiver.one().await.settle(retry(NOW)).await.unwrap();
    let batch = receiver.ready().await;
    assert_eq!(ids(&batch), ["b", "a"]);
    let retried = &batch[1];
    assert_eq!((retried.attempt(), retried.hop().attempts), (2, 1));
    assert!(retried.hop().id.is_some() && retried.hop().first_failure.is_some());
    assert_eq!(retried.envelope().as_ref().id, "a");
}

#[tokio::test(start_paused = true)]
async fn attempts_add_up_over_retries_crashes_and_releases() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    drop(receiver.one().await);
    drop(receiver.one().await);
    receiver.one().await.settle(retry(NOW)).await.unwrap();
    let first_failure = {
        let delivery = receiver.one().await;
        assert_eq!(delivery.attempt(), 4);
        delivery.hop().first_failure
    };
    receiver.one().await.settle(release(NOW)).await.unwrap();
    let delivery = receiver.one().await;
    assert_eq!(delivery.attempt(), 5);
    assert_eq!(delivery.hop().first_failure, first_failure);
}

#[tokio::test(start_paused = true)]
async fn cancelled_receive_loses_nothing() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    receiver.expect_nothing_for(SECOND).await;
    publish(&broker, Queue::new("q"), &["a"]).await;
    receiver.expect("a").await;
}

#[tokio::test(start_paused = true)]
async fn depth_tells_the_age_of_the_oldest_ready_message() {
    let broker = broker();
    broker.declare(&queue()).await.unwrap();
    assert_eq!(broker.depth(&queue()).await.unwrap().oldest, None);
    publish(&broker, Queue::new("q"), &["a"]).await;
    tokio::time::advance(SECOND * 60).await;
    publish(&broker, Queue::new("q"), &["b"]).await;
    tokio::time::advance(SECOND).await;
    assert_eq!(broker.depth(&queue()).await.unwrap().oldest, Some(SECOND * 61));
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let held = receiver.one().await;
    assert_eq!(broker.depth(&queue()).await.unwrap().oldest, Some(SECOND));
    held.settle(retry(NOW)).await.unwrap();
    assert_eq!(broker.depth(&queue()).await.unwrap().oldest, Some(SECOND * 61));
}
