use std::sync::Arc;

use anybroker_core::{Delivery, ErrorKind, Outcome, Queue, Settler, Subscription};
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q").lease(SECOND * 10)
}

/// What becomes of deliveries when their process is killed.
fn forget(deliveries: impl IntoIterator<Item = Delivery>) {
    deliveries.into_iter().for_each(std::mem::forget);
}

fn settler(receiver: &Receiver) -> Arc<dyn Settler> {
    receiver.0.lease().unwrap().0
}

#[tokio::test(start_paused = true)]
async fn killed_consumers_messages_come_back_when_their_leases_end() {
    let broker = broker();
    let mut killed = Receiver::open(&broker, &queue()).await;
    let mut other = Receiver::open(&broker, &queue()).await;
    assert_eq!(killed.0.lease().unwrap().1, SECOND * 10);
    let start = Instant::now();
    let waiting = tokio::spawn(async move {
        tokio::time::sleep(SECOND).await;
        let batch = other.receive(64).await.unwrap();
        (start.elapsed(), batch)
    });
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    forget(killed.receive(2).await.unwrap());
    drop(killed);
    let (waited, batch) = waiting.await.unwrap();
    assert_eq!((waited, ids(&batch)), (SECOND * 10, vec!["a", "b"]));
    assert!(batch.iter().all(|delivery| delivery.attempt() == 2));
}

#[tokio::test(start_paused = true)]
async fn consumer_that_waits_already_notices_a_new_lease() {
    let broker = broker();
    let mut killed = Receiver::open(&broker, &queue()).await;
    let mut other = Receiver::open(&broker, &queue()).await;
    let taken = tokio::spawn(async move { forget([killed.one().await]) });
    tokio::task::yield_now().await;
    let waiting = tokio::spawn(async move { other.one().await });
    tokio::task::yield_now().await;
    let start = Instant::now();
    publish(&broker, Queue::new("q"), &["a"]).await;
    taken.await.unwrap();
    assert_eq!(waiting.await.unwrap().attempt(), 2);
    assert_eq!(start.elapsed(), SECOND * 10);
}

#[tokio::test(start_paused = true)]
async fn full_consumer_gets_back_what_it_let_lapse() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut receiver = Receiver::with_prefetch(&broker, &queue(), 1).await;
    forget([receiver.one().await]);
    let start = Instant::now();
    assert_eq!(receiver.one().await.attempt(), 2);
    assert_eq!(start.elapsed(), SECOND * 10);
}

#[tokio::test(start_paused = true)]
async fn renewed_lease_lasts() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["kept", "lost"]).await;
    let mut holder = Receiver::open(&broker, &queue()).await;
    let mut other = Receiver::open(&broker, &queue()).await;
    let mut held = holder.receive(2).await.unwrap();
    for _ in 0..5 {
        tokio::time::advance(SECOND * 5).await;
        settler(&holder).renew(&[held[0].tag(), u64::MAX]).await.unwrap();
    }
    assert_eq!(ids(&other.ready().await), ["lost"]);
    held.remove(0).settle(Outcome::Ack).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn settlement_after_another_consumer_took_the_message_is_stale() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b", "c", "d"]).await;
    let mut slow = Receiver::open(&broker, &queue()).await;
    let mut other = Receiver::open(&broker, &queue()).await;
    let held = slow.receive(4).await.unwrap();
    tokio::time::advance(SECOND * 10).await;
    let taken = other.ready().await;
    assert_eq!(taken.len(), 4);

    let tags: Vec<_> = held.iter().map(Delivery::tag).collect();
    settler(&slow).renew(&tags).await.unwrap();
    let outcomes =
        [Outcome::Ack, retry(NOW), release(NOW), Outcome::dead_letter("broken", "no use")];
    for (delivery, outcome) in held.into_iter().zip(outcomes) {
        let error = delivery.settle(outcome).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
    }
    assert_eq!(depth(&broker, &queue()).await, [0, 4, 0, 0], "nothing was settled or copied");
    for delivery in taken {
        delivery.settle(Outcome::Ack).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn stale_delivery_that_is_dropped_gives_nothing_back() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut slow = Receiver::open(&broker, &queue()).await;
    let held = slow.one().await;
    tokio::time::advance(SECOND * 10).await;
    // The same consumer takes it again, into the same place of its table.
    let again = slow.one().await;
    drop(held);
    assert_eq!(depth(&broker, &queue()).await, [0, 1, 0, 0]);
    again.settle(Outcome::Ack).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn renewal_of_a_settled_delivery_reaches_no_other() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let settled = receiver.expect("a").await;
    let tag = settled.tag();
    settled.settle(Outcome::Ack).await.unwrap();
    forget([receiver.expect("b").await]);
    tokio::time::advance(SECOND * 5).await;
    settler(&receiver).renew(&[tag]).await.unwrap();
    tokio::time::advance(SECOND * 5).await;
    assert_eq!(ids(&receiver.ready().await), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn lease_that_nobody_noticed_to_end_harms_nobody() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let held = receiver.one().await;
    tokio::time::advance(SECOND * 60).await;
    held.settle(Outcome::Ack).await.unwrap();
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn deliveries_outlive_their_consumer() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["acked", "dropped", "lapsed"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let mut held = receiver.receive(3).await.unwrap();
    receiver.0.close().await.unwrap();
    assert_eq!(depth(&broker, &queue()).await, [0, 3, 0, 0]);
    held.remove(0).settle(Outcome::Ack).await.unwrap();
    drop(held.remove(0));
    assert_eq!(depth(&broker, &queue()).await, [1, 1, 0, 0]);
    tokio::time::advance(SECOND * 10).await;
    assert_eq!(depth(&broker, &queue()).await, [2, 0, 0, 0]);
    assert_eq!(
        held.remove(0).settle(Outcome::Ack).await.unwrap_err().kind(),
        ErrorKind::StaleDelivery
    );
}

#[tokio::test(start_paused = true)]
async fn shorter_lease_of_another_consumer_ends_first() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["long", "short"]).await;
    let mut long = Receiver::open(&broker, &queue().lease(SECOND * 100)).await;
    let mut short = Receiver::open(&broker, &queue().lease(SECOND * 2)).await;
    let _held = long.one().await;
    forget([short.one().await]);
    let start = Instant::now();
    long.expect("short").await;
    assert_eq!(start.elapsed(), SECOND * 2);
}
