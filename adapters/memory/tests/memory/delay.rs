use std::time::Duration;

use anybroker_core::{Broker, Outcome, Outgoing, Queue, Subscription};
use anybroker_memory::MemoryBroker;
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

async fn publish_delayed(broker: &MemoryBroker, id: &str, delay: Duration) {
    let outgoing = Outgoing::new(Queue::new("q"), message(id)).with_delay(delay);
    broker.producer().send(outgoing).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn delayed_publish_arrives_in_its_time_and_never_early() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    publish_delayed(&broker, "late", SECOND * 10).await;
    publish_delayed(&broker, "soon", SECOND * 5).await;
    publish(&broker, Queue::new("q"), &["now"]).await;
    assert_eq!(depth(&broker, &queue()).await, [1, 0, 2, 0]);
    receiver.expect("now").await.settle(Outcome::Ack).await.unwrap();

    receiver.expect_nothing_for(MILLISECOND * 4999).await;
    let start = Instant::now();
    let soon = receiver.expect("soon").await;
    assert_eq!(start.elapsed(), MILLISECOND);
    assert_eq!((soon.attempt(), soon.hop().not_before), (1, None), "the broker has kept the time");
    receiver.expect("late").await;
    assert_eq!(start.elapsed(), SECOND * 5 + MILLISECOND);
}

#[tokio::test(start_paused = true)]
async fn delays_below_a_millisecond_are_not_cut() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let start = Instant::now();
    let delay = Duration::from_micros(1500);
    publish_delayed(&broker, "a", delay).await;
    receiver.expect("a").await;
    assert!(start.elapsed() >= delay);
}

#[tokio::test(start_paused = true)]
async fn retry_and_release_wait_exactly_as_long_as_asked() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    publish(&broker, Queue::new("q"), &["a"]).await;
    let start = Instant::now();
    receiver.one().await.settle(retry(SECOND * 60)).await.unwrap();
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 1, 0]);
    let delivery = receiver.one().await;
    assert_eq!((start.elapsed(), delivery.attempt()), (SECOND * 60, 2));
    assert_eq!(delivery.hop().not_before, None);
    delivery.settle(release(SECOND * 30)).await.unwrap();
    let delivery = receiver.one().await;
    assert_eq!((start.elapsed(), delivery.attempt()), (SECOND * 90, 2));
}

#[tokio::test(start_paused = true)]
async fn waiting_consumer_learns_of_an_earlier_deadline() {
    let broker = broker();
    publish_delayed(&broker, "late", SECOND * 60).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let start = Instant::now();
    let waiting = tokio::spawn(async move { (receiver.one().await, start.elapsed()) });
    tokio::time::sleep(SECOND).await;
    publish_delayed(&broker, "soon", SECOND).await;
    let (delivery, waited) = waiting.await.unwrap();
    assert_eq!((&*delivery.envelope().id, waited), ("soon", SECOND * 2));
}

#[tokio::test(start_paused = true)]
async fn every_waiting_consumer_watches_the_deadline() {
    let broker = broker();
    let mut first = Receiver::open(&broker, &queue()).await;
    let mut second = Receiver::open(&broker, &queue()).await;
    let start = Instant::now();
    let busy = tokio::spawn(async move { (first.one().await, first) });
    let waiting = tokio::spawn(async move { (second.one().await, start.elapsed()) });
    tokio::time::sleep(SECOND).await;
    publish_delayed(&broker, "later", SECOND * 10).await;
    publish(&broker, Queue::new("q"), &["now"]).await;
    // The first is busy with its message from here on, and polls no more.
    let (held, _receiver) = busy.await.unwrap();
    assert_eq!(held.envelope().id, "now");
    let (delivery, waited) = waiting.await.unwrap();
    assert_eq!((&*delivery.envelope().id, waited), ("later", SECOND * 11));
}

#[tokio::test(start_paused = true)]
async fn endless_delay_is_no_error() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    publish_delayed(&broker, "a", Duration::MAX).await;
    publish(&broker, Queue::new("q"), &["b", "c"]).await;
    for (delivery, outcome) in
        receiver.ready().await.into_iter().zip([retry(Duration::MAX), release(Duration::MAX)])
    {
        delivery.settle(outcome).await.unwrap();
    }
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 3, 0]);
    receiver.expect_nothing_for(SECOND * 60 * 60 * 24 * 365).await;
}
