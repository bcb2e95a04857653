use std::sync::Arc;

use anybroker_core::{
    Broker, DeadLetterFilter, Destination, Error, ErrorKind, Outcome, Queue, Redrive, Subscription,
};
use anybroker_memory::MemoryBroker;
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

/// Two connections to one broker.
fn connections(name: &str) -> [Arc<MemoryBroker>; 2] {
    [(); 2].map(|()| MemoryBroker::builder().name(name).build())
}

#[tokio::test(start_paused = true)]
async fn later_calls_answer_closed() {
    let broker = broker();
    publish(&broker, Queue::new("q"), &["a"]).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    broker.health().await.unwrap();
    broker.close().await.unwrap();
    broker.close().await.unwrap();

    let closed = |result: Result<(), Error>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Closed);
    };
    closed(broker.health().await);
    closed(send(&broker, Queue::new("q"), message("b")).await);
    closed(broker.declare_destination(&Destination::queue("q")).await);
    closed(broker.declare(&queue()).await);
    closed(broker.consume(&queue(), 1).await.map(drop));
    closed(broker.depth(&queue()).await.map(drop));
    closed(broker.dead_letters(&queue(), &DeadLetterFilter::all(), 1).await.map(drop));
    closed(broker.redrive(&queue(), &Redrive::all()).await.map(drop));
    closed(broker.purge_dead_letters(&queue()).await.map(drop));
    closed(receiver.receive(1).await.map(drop));
}

#[tokio::test(start_paused = true)]
async fn idle_receiver_ends() {
    let broker = broker();
    let mut receiver = Receiver::open(&broker, &queue()).await;
    let waiting = tokio::spawn(async move { receiver.receive(1).await });
    tokio::task::yield_now().await;
    broker.close().await.unwrap();
    let ended = tokio::time::timeout(SECOND, waiting).await.unwrap();
    assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn waiting_receivers_end() {
    let broker = broker();
    let mut idle = Receiver::open(&broker, &queue()).await;
    let mut full = Receiver::with_prefetch(&broker, &queue(), 1).await;
    publish(&broker, Queue::new("q"), &["a"]).await;
    let _held = full.one().await;
    let waiting = [
        tokio::spawn(async move { idle.receive(1).await }),
        tokio::spawn(async move { full.receive(1).await }),
    ];
    tokio::task::yield_now().await;
    let start = Instant::now();
    broker.close().await.unwrap();
    for receiver in waiting {
        assert_eq!(receiver.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(start.elapsed(), NOW, "at once, not when the lease ends");
}

#[tokio::test(start_paused = true)]
async fn closing_gives_back_what_was_in_flight_and_leaves_other_connections() {
    let [closing, staying] = connections("closing");
    let mut other = Receiver::open(&staying, &queue()).await;
    let waiting = tokio::spawn(async move { (other.one().await, other) });
    tokio::task::yield_now().await;
    let mut receiver = Receiver::open(&closing, &queue()).await;
    publish(&closing, Queue::new("q"), &["a", "b"]).await;
    let held = receiver.receive(2).await.unwrap();
    let (nothing, waiting) = tokio::join!(closing.close(), waiting);
    nothing.unwrap();
    let (first, mut other) = waiting.unwrap();
    assert_eq!((&*first.envelope().id, first.attempt()), ("a", 2));
    other.expect("b").await;
    for delivery in held {
        let error = delivery.settle(Outcome::Ack).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
    }
    staying.health().await.unwrap();
}
