use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use anybroker_core::{Broker, Consumer, Delivery, Outcome, Queue, Subscription};
use anybroker_memory::MemoryBroker;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

/// A consumer that is polled by hand, and how often it was woken.
struct Watched {
    consumer: Box<dyn Consumer>,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Watched {
    async fn waiting(broker: &MemoryBroker) -> Self {
        let consumer = broker.consume(&queue(), 64).await.unwrap();
        let mut watched = Self { consumer, wakes: Arc::default() };
        assert!(watched.poll(64).is_empty());
        watched
    }

    fn poll(&mut self, max: usize) -> Vec<Delivery> {
        let mut out = Vec::new();
        let waker = Waker::from(self.wakes.clone());
        match self.consumer.poll_receive(&mut Context::from_waker(&waker), max, &mut out) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => assert!(out.is_empty()),
        }
        out
    }

    /// How often it was woken since the last time.
    fn wakes(&self) -> usize {
        self.wakes.0.swap(0, Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn message_wakes_whoever_waits_and_only_once() {
    let broker = broker();
    let mut waiting = [Watched::waiting(&broker).await, Watched::waiting(&broker).await];
    // Looking twice is waiting once.
    assert!(waiting[0].poll(64).is_empty());
    publish(&broker, Queue::new("q"), &["a", "b"]).await;
    assert_eq!(waiting.each_ref().map(Watched::wakes), [1, 1]);
    // The first never comes: a handler may block its thread.
    assert_eq!(ids(&waiting[1].poll(64)), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn full_consumer_is_not_woken_for_messages() {
    let broker = broker();
    let consumer = broker.consume(&queue(), 1).await.unwrap();
    let mut full = Watched { consumer, wakes: Arc::default() };
    publish(&broker, Queue::new("q"), &["a"]).await;
    let held = full.poll(64);
    assert!(full.poll(64).is_empty());
    publish(&broker, Queue::new("q"), &["b"]).await;
    assert_eq!(full.wakes(), 0);
    for delivery in held {
        delivery.settle(Outcome::Ack).await.unwrap();
    }
    assert_eq!(full.wakes(), 1);
    assert_eq!(ids(&full.poll(64)), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn whatever_becomes_ready_wakes_whoever_waits() {
    let broker = broker();
    let consumer = broker.consume(&queue(), 64).await.unwrap();
    let mut busy = Watched { consumer, wakes: Arc::default() };
    let mut waiting = Watched::waiting(&broker).await;
    publish(&broker, Queue::new("q"), &["a"]).await;
    for outcome in [None, Some(retry(NOW)), Some(release(NOW)), Some(retry(SECOND))] {
        let delivery = busy.poll(64).remove(0);
        assert!(waiting.poll(64).is_empty());
        waiting.wakes();
        match outcome {
            Some(outcome) => delivery.settle(outcome).await.unwrap(),
            None => drop(delivery),
        }
        assert_eq!(waiting.wakes(), 1);
    }
    assert!(waiting.poll(64).is_empty());
    // Nobody polls, but somebody looks.
    tokio::time::advance(SECOND).await;
    waiting.wakes();
    assert!(waiting.poll(0).is_empty());
    assert_eq!(depth(&broker, &queue()).await, [1, 0, 0, 0]);
    assert_eq!(waiting.wakes(), 1);
}

/// How long a test on threads may take: no timer wakes its consumers before their leases of 30 s end,
/// so that a wake-up that is lost stops it.
const PATIENCE: Duration = Duration::from_secs(20);

const MESSAGES: usize = 20_000;

/// Settles messages in every way, leaves again and again, and gives receives up half-way, until all
/// messages are acknowledged, by whomever.
async fn come_and_go(number: usize, broker: Arc<MemoryBroker>, acknowledged: Arc<AtomicUsize>) {
    let mut receiver = Receiver::with_prefetch(&broker, &queue(), 4).await;
    for round in number.. {
        if round % 7 == 0 {
            let Ok(consumer) = broker.consume(&queue(), 4).await else { return };
            receiver = Receiver(consumer);
        }
        let batch = tokio::select! {
            biased;
            batch = receiver.receive(3) => batch,
            () = tokio::task::yield_now(), if round % 5 == 0 => continue,
        };
        let Ok(batch) = batch else { return };
        for (index, delivery) in batch.into_iter().enumerate() {
            let outcome = match (round + index) % 11 {
                0 => continue,
                1 => retry(NOW),
                2 => release(NOW),
                _ => Outcome::Ack,
            };
            let is_done = outcome == Outcome::Ack;
            delivery.settle(outcome).await.unwrap();
            if is_done && acknowledged.fetch_add(1, Ordering::SeqCst) + 1 == MESSAGES {
                broker.close().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_among_consumers_that_come_and_go() {
    let [broker, producer] =
        [(); 2].map(|()| MemoryBroker::builder().name("come and go").capacity(100).build());
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for number in 0..6 {
        tasks.push(tokio::spawn(come_and_go(number, broker.clone(), acknowledged.clone())));
    }
    for _ in 0..2 {
        let producer = producer.clone();
        tasks.push(tokio::spawn(async move {
            for number in 0..MESSAGES / 2 {
                send(&producer, Queue::new("q"), message(&number.to_string())).await.unwrap();
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(PATIENCE, task).await.expect("a wake-up was lost").unwrap();
    }
    assert_eq!(acknowledged.load(Ordering::SeqCst), MESSAGES);
    assert_eq!(depth(&producer, &queue()).await, [0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_message_is_left_lying_before_idle_consumers() {
    let broker = broker();
    let calls = Subscription::queue("call");
    let mut echoes = Vec::new();
    for _ in 0..3 {
        let mut receiver = Receiver::with_prefetch(&broker, &calls, 1).await;
        let broker = broker.clone();
        echoes.push(tokio::spawn(async move {
            while let Ok(batch) = receiver.receive(1).await {
                for delivery in batch {
                    let echo = message(&delivery.envelope().id);
                    delivery.settle(Outcome::Ack).await.unwrap();
                    send(&broker, Queue::new("q"), echo).await.unwrap();
                }
            }
        }));
    }
    let mut receiver = Receiver::open(&broker, &queue()).await;
    for number in 0..5_000 {
        let id = number.to_string();
        publish(&broker, Queue::new("call"), &[&id]).await;
        let echo = tokio::time::timeout(PATIENCE, receiver.expect(&id)).await;
        echo.expect("a message was left lying").settle(Outcome::Ack).await.unwrap();
    }
    broker.close().await.unwrap();
    for echo in echoes {
        echo.await.unwrap();
    }
}
