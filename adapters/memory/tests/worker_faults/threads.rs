//! The same on real threads, at speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anybroker_core::{Broker, Message, Outcome, Outgoing, Queue, Worker};
use anybroker_memory::MemoryBroker;
use tower::service_fn;

use crate::double::{Answer, envelope, work};

const PRODUCERS: usize = 4;

/// One worker stays, others are dropped midway, the queue is full all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_among_threads() {
    let count = std::env::var("COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let broker: Arc<dyn Broker> = MemoryBroker::builder().capacity(100).build();
    broker.declare(&work()).await.unwrap();
    let acks: Arc<Vec<AtomicU32>> = Arc::new((0..count).map(|_| AtomicU32::new(0)).collect());
    let turn = Arc::new(AtomicU64::new(0));
    let worker = |loops| {
        let (acks, turn) = (Arc::clone(&acks), Arc::clone(&turn));
        let handler = service_fn(move |message: Message| {
            let (acks, turn) = (Arc::clone(&acks), Arc::clone(&turn));
            async move {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                if turn.is_multiple_of(7) {
                    tokio::task::yield_now().await;
                }
                if turn.is_multiple_of(5) {
                    return Answer::Ok(Outcome::Release { after: Duration::ZERO });
                }
                if turn.is_multiple_of(11) && message.attempt() < 10 {
                    return Ok(Outcome::Retry { after: Duration::ZERO });
                }
                let id: usize = message.envelope().id.parse().unwrap();
                acks[id].fetch_add(1, Ordering::Relaxed);
                Ok(Outcome::Ack)
            }
        });
        let subscription = work().unlimited_deliveries();
        Worker::new(broker.clone()).subscribe(subscription, handler).concurrency(8).loops(loops)
    };
    let mut producers = Vec::new();
    for producer in 0..PRODUCERS {
        let sender = broker.producer();
        producers.push(tokio::spawn(async move {
            for id in (producer..count).step_by(PRODUCERS) {
                let envelope = envelope().with_id(id.to_string());
                let sent = sender.send(Outgoing::new(Queue::new("work"), envelope));
                // Not all of them wait for the answer: the queue may hold that many more.
                if id % 3 > 0 {
                    sent.await.unwrap();
                }
            }
        }));
    }
    let steady = worker(2).start().await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let steady = tokio::spawn(steady.run_until(stopped));
    for producer in producers {
        while !producer.is_finished() {
            let passing = worker(2).start().await.unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
            drop(passing);
        }
        producer.await.unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    loop {
        let depth = broker.depth(&work()).await.unwrap();
        if (depth.ready, depth.delayed, depth.in_flight) == (Some(0), Some(0), Some(0)) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{depth:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send(()).unwrap();
    steady.await.unwrap().unwrap();
    let lost: Vec<_> = (0..count).filter(|id| acks[*id].load(Ordering::Relaxed) == 0).collect();
    assert!(lost.is_empty(), "{lost:?}");
}
