use std::sync::Arc;

use anybroker_core::{Broker, ErrorKind, Outcome, Queue, RetryClass, Subscription, Topic};
use anybroker_memory::MemoryBroker;
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

fn small() -> Arc<MemoryBroker> {
    MemoryBroker::builder().capacity(2).publish_timeout(SECOND * 5).build()
}

#[tokio::test(start_paused = true)]
async fn send_waits_for_room_and_keeps_its_place() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let third = tokio::spawn(send(&broker, Queue::new("q"), message("c")));
    let fourth = tokio::spawn(send(&broker, Queue::new("q"), message("d")));
    tokio::time::sleep(SECOND).await;
    assert!(!third.is_finished() && !fourth.is_finished());

    let mut receiver = Receiver::open(&broker, &queue()).await;
    let _a = receiver.expect("a").await;
    third.await.unwrap().unwrap();
    tokio::task::yield_now().await;
    assert!(!fourth.is_finished(), "there was room for one");
    // This one must not overtake the fourth.
    let fifth = tokio::spawn(send(&broker, Queue::new("q"), message("e")));
    let mut batch = receiver.ready().await;
    fourth.await.unwrap().unwrap();
    fifth.await.unwrap().unwrap();
    batch.extend(receiver.ready().await);
    assert_eq!(ids(&batch), ["b", "c", "d", "e"]);
}

#[tokio::test(start_paused = true)]
async fn send_that_waits_is_overtaken_by_none_that_may_fill_the_group_further() {
    let [small, large] = [1, 2]
        .map(|capacity| MemoryBroker::builder().name("overtaking").capacity(capacity).build());
    publish(&small, Queue::new("q"), &["a"]).await;
    let first = tokio::spawn(send(&small, Queue::new("q"), message("b")));
    let second = tokio::spawn(send(&large, Queue::new("q"), message("c")));
    let mut receiver = Receiver::open(&small, &queue()).await;
    let _a = receiver.expect("a").await;
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(ids(&receiver.ready().await), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn send_is_refused_at_the_publish_timeout_and_stores_nothing() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let start = Instant::now();
    let error = send(&broker, Queue::new("q"), message("c")).await.unwrap_err();
    assert_eq!(start.elapsed(), SECOND * 5);
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Blocked, RetryClass::Transient));
    let mut receiver = Receiver::open(&broker, &queue()).await;
    assert_eq!(ids(&receiver.ready().await), ["a", "b"]);
    assert_eq!(ids(&receiver.ready().await), ["a", "b"], "given back, and nothing behind them");
}

#[tokio::test(start_paused = true)]
async fn send_goes_on_when_its_confirmation_is_dropped() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    drop(send(&broker, Queue::new("q"), message("c")));
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let _held = receiver.receive(2).await.unwrap();
    receiver.expect("c").await;
}

#[tokio::test(start_paused = true)]
async fn abandoned_sends_do_not_pile_up() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    drop(send(&broker, Queue::new("q"), message("c")));
    tokio::time::advance(SECOND * 5).await;
    let next = tokio::spawn(send(&broker, Queue::new("q"), message("d")));
    tokio::task::yield_now().await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let _held = receiver.receive(2).await.unwrap();
    receiver.expect("d").await;
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn send_to_a_topic_waits_for_all_groups_and_reaches_all_or_none() {
    let broker = small();
    let group = |name: &'static str| Subscription::topic("t").group(name);
    let mut fast = Receiver::open(&broker, &group("fast")).await;
    let mut slow = Receiver::open(&broker, &group("slow")).await;
    publish(&broker, Topic::new("t"), &["a", "b"]).await;
    for delivery in fast.ready().await {
        delivery.settle(Outcome::Ack).await.unwrap();
    }
    send(&broker, Topic::new("t"), message("refused")).await.unwrap_err();
    assert_eq!(depth(&broker, &group("fast")).await, [0, 0, 0, 0]);

    let waiting = tokio::spawn(send(&broker, Topic::new("t"), message("c")));
    let batch = tokio::spawn(async move { fast.one().await });
    tokio::task::yield_now().await;
    slow.one().await.settle(Outcome::Ack).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(batch.await.unwrap().envelope().id, "c");
    assert_eq!(ids(&slow.ready().await), ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn delayed_messages_take_room() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    receiver.one().await.settle(retry(SECOND * 60)).await.unwrap();
    send(&broker, Queue::new("q"), message("c")).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_finds_room() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let held = receiver.ready().await;
    publish(&broker, Queue::new("q"), &["c", "d"]).await;
    drop(held);
    assert_eq!(depth(&broker, &queue()).await, [4, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn waiting_send_ends_when_its_connection_is_closed() {
    let broker = small();
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    let waiting = tokio::spawn(send(&broker, Queue::new("q"), message("c")));
    tokio::task::yield_now().await;
    broker.close().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
}
