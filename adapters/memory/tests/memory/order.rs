use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anybroker_core::{
    Broker, Delivery, Envelope, Outcome, Outgoing, Queue, Redrive, Subscription, Topic,
};
use anybroker_memory::MemoryBroker;
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Queue {
    Queue::new("q").ordered()
}

fn ordered() -> Subscription {
    Subscription::queue(queue()).lease(SECOND * 10)
}

/// Publishes messages; the key is the first letter of the id.
async fn publish_keyed(broker: &MemoryBroker, ids: &[&str]) {
    for id in ids {
        send(broker, queue(), message(id).with_key(&id[..1])).await.unwrap();
    }
}

async fn started(ids: &[&str]) -> (Arc<MemoryBroker>, Receiver) {
    let broker = broker();
    publish_keyed(&broker, ids).await;
    let receiver = Receiver::open(&broker, &ordered()).await;
    (broker, receiver)
}

#[tokio::test(start_paused = true)]
async fn key_in_flight_is_held_back_from_all_consumers() {
    let (broker, mut first) = started(&["a1", "a2", "b1", "a3", "b2"]).await;
    let mut second = Receiver::open(&broker, &ordered()).await;
    let mut held = first.ready().await;
    assert_eq!(ids(&held), ["a1", "b1"], "one of each key, even within a batch");
    second.expect_nothing_for(SECOND).await;
    assert_eq!(depth(&broker, &ordered()).await, [3, 2, 0, 0]);

    held.remove(0).settle(Outcome::Ack).await.unwrap();
    let next = second.ready().await;
    assert_eq!(ids(&next), ["a2"]);
}

#[tokio::test(start_paused = true)]
async fn key_with_nothing_left_is_free_again() {
    let (broker, mut receiver) = started(&["a1"]).await;
    receiver.expect("a1").await.settle(Outcome::Ack).await.unwrap();
    publish_keyed(&broker, &["a2"]).await;
    receiver.expect("a2").await;
}

#[tokio::test(start_paused = true)]
async fn retry_holds_back_its_key_and_no_other() {
    let (_broker, mut receiver) = started(&["a1", "a2", "b1"]).await;
    let start = Instant::now();
    let mut held = receiver.ready().await;
    held.remove(0).settle(retry(SECOND * 5)).await.unwrap();
    held.remove(0).settle(Outcome::Ack).await.unwrap();
    let retried = receiver.expect("a1").await;
    assert_eq!((start.elapsed(), retried.attempt()), (SECOND * 5, 2));
    receiver.expect_nothing_for(SECOND).await;
    retried.settle(Outcome::Ack).await.unwrap();
    receiver.expect("a2").await;
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_back_comes_before_the_rest_of_its_key() {
    let (broker, mut receiver) = started(&["a1", "a2"]).await;
    receiver.expect("a1").await.settle(retry(NOW)).await.unwrap();
    receiver.expect("a1").await.settle(release(NOW)).await.unwrap();
    receiver.expect("a1").await.settle(release(SECOND)).await.unwrap();
    drop(receiver.expect("a1").await);
    std::mem::forget(receiver.expect("a1").await);
    let mut other = Receiver::open(&broker, &ordered()).await;
    let delivery = other.expect("a1").await;
    assert_eq!(delivery.attempt(), 4, "one retry, one drop, one lapse");
    delivery.settle(Outcome::Ack).await.unwrap();
    other.expect("a2").await;
}

#[tokio::test(start_paused = true)]
async fn dead_letter_lets_its_key_go_on_and_is_redriven_behind() {
    let (broker, mut receiver) = started(&["a1", "a2", "a3"]).await;
    let dead_letter = Outcome::dead_letter("broken", "no use");
    receiver.expect("a1").await.settle(dead_letter).await.unwrap();
    let second = receiver.expect("a2").await;
    assert_eq!(broker.redrive(&ordered(), &Redrive::all()).await.unwrap(), 1);
    receiver.expect_nothing_for(SECOND).await;
    second.settle(Outcome::Ack).await.unwrap();
    receiver.expect("a3").await.settle(Outcome::Ack).await.unwrap();
    receiver.expect("a1").await.settle(Outcome::Ack).await.unwrap();
    assert_eq!(depth(&broker, &ordered()).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn delayed_publish_holds_its_place() {
    let broker = broker();
    let delayed = Outgoing::new(queue(), message("a1").with_key("a")).with_delay(SECOND * 5);
    broker.producer().send(delayed.clone()).await.unwrap();
    publish_keyed(&broker, &["a2"]).await;
    let last = Outgoing { envelope: message("a3").with_key("a"), ..delayed };
    broker.producer().send(last.with_delay(SECOND * 60)).await.unwrap();
    assert_eq!(depth(&broker, &ordered()).await, [1, 0, 2, 0]);

    let mut receiver = Receiver::open(&broker, &ordered()).await;
    let start = Instant::now();
    for (id, after) in [("a1", 5), ("a2", 5), ("a3", 60)] {
        let delivery = receiver.expect(id).await;
        assert_eq!(start.elapsed(), SECOND * after);
        delivery.settle(Outcome::Ack).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_wait_for_nobody() {
    let broker = broker();
    publish(&broker, queue(), &["x", "y"]).await;
    let mut receiver = Receiver::open(&broker, &ordered()).await;
    assert_eq!(ids(&receiver.ready().await), ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn one_group_of_a_topic_is_ordered_and_another_is_not() {
    let broker = broker();
    let group = |name: &'static str| Subscription::topic("t").group(name);
    let mut ordered = Receiver::open(&broker, &group("ordered").ordered()).await;
    let mut unordered = Receiver::open(&broker, &group("unordered")).await;
    for id in ["1", "2"] {
        send(&broker, Topic::new("t"), message(id).with_key("k")).await.unwrap();
    }
    assert_eq!(ids(&ordered.ready().await), ["1"]);
    assert_eq!(ids(&unordered.ready().await), ["1", "2"]);
}

/// Which message each key is at, and whether it is being handled.
#[derive(Default)]
struct Progress(Mutex<HashMap<String, (usize, bool)>>);

impl Progress {
    fn begin(&self, delivery: &Delivery) {
        let (key, number) = parse(delivery);
        let mut keys = self.0.lock().unwrap();
        let (next, running) = keys.entry(key.to_owned()).or_default();
        assert!(!*running, "two messages of key {key} at once");
        assert_eq!(*next, number, "key {key} out of order");
        *running = true;
    }

    fn end(&self, delivery: &Delivery, is_done: bool) {
        let mut keys = self.0.lock().unwrap();
        let (next, running) = keys.get_mut(parse(delivery).0).unwrap();
        *running = false;
        *next += usize::from(is_done);
    }

    fn is_complete(&self, keys: usize, each: usize) -> bool {
        let progress = self.0.lock().unwrap();
        progress.len() == keys && progress.values().all(|(next, _)| *next == each)
    }
}

fn parse(delivery: &Delivery) -> (&str, usize) {
    let Envelope { id, key, .. } = &**delivery.envelope();
    (key.as_deref().unwrap(), id.rsplit('-').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn order_holds_with_ten_consumers_and_sixteen_keys_whatever_the_outcomes() {
    const KEYS: usize = 16;
    const EACH: usize = 50;
    let broker = broker();
    let progress = Arc::new(Progress::default());
    for number in 0..EACH {
        for key in 0..KEYS {
            let key = format!("k{key}");
            let envelope = message(&format!("{key}-{number}")).with_key(key);
            send(&broker, queue(), envelope).await.unwrap();
        }
    }
    let mut consumers = Vec::new();
    for consumer in 0..10_u64 {
        let (broker, progress) = (broker.clone(), progress.clone());
        consumers.push(tokio::spawn(async move {
            let mut receiver = Receiver::with_prefetch(&broker, &ordered(), 8).await;
            let mut random = consumer.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            while !progress.is_complete(KEYS, EACH) {
                let wait = tokio::time::timeout(SECOND, receiver.receive(4));
                let Ok(batch) = wait.await else { continue };
                for delivery in batch.unwrap() {
                    progress.begin(&delivery);
                    // Xorshift: the same run each time.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    tokio::time::sleep(MILLISECOND * u32::try_from(random % 3).unwrap()).await;
                    let outcome = match random % 10 {
                        0 => Some(retry(NOW)),
                        1 => Some(retry(MILLISECOND * 40)),
                        2 => Some(release(NOW)),
                        3 => Some(release(MILLISECOND * 15)),
                        4 => None,
                        _ => Some(Outcome::Ack),
                    };
                    progress.end(&delivery, outcome == Some(Outcome::Ack));
                    match outcome {
                        Some(outcome) => delivery.settle(outcome).await.unwrap(),
                        None => drop(delivery),
                    }
                }
            }
        }));
    }
    for consumer in consumers {
        consumer.await.unwrap();
    }
    assert_eq!(depth(&broker, &ordered()).await, [0, 0, 0, 0]);
}
