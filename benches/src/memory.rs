//! The memory broker and the worker, against a bare tokio channel.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anybroker::{
    Backoff, BoxError, DeadLetterLayer, Envelope, Event, IdempotencyLayer, Jitter,
    MemoryIdempotencyStore, Message, Outcome, RetryLayer, ServiceBuilder, Subscription,
    TimeoutLayer, TypedMessage, Worker, connect, handler_fn,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tower::Service;

use crate::measure::{Goal, Table, in_turn, rate};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "bench.placed", key = "id")]
struct Placed {
    id: u64,
    customer: String,
    total_cents: u64,
}

/// About 256 bytes with its attributes.
fn placed(id: usize) -> Placed {
    Placed { id: id as u64, customer: "customer-0123456789".to_owned(), total_cents: 12_345 }
}

pub(crate) async fn run(table: &mut Table, quick: bool) -> Result<(), BoxError> {
    let messages = 500_000;
    let rounds = if quick { 3 } else { 7 };

    let (ours, bare) = in_turn(rounds, || publish(messages), || bare_publish(messages)).await?;
    table.add("memory · publish, typed, 2 tasks", ours, Some(bare), Goal::None);

    let plain = || consume(messages, handler_fn(|event: Placed, _: Message| take(&event)));
    let (ours, bare) = in_turn(rounds, plain, || bare_consume(messages)).await?;
    table.add("memory · worker, typed, no layers", ours, Some(bare), Goal::None);

    let layered = || {
        let service = ServiceBuilder::new()
            .layer(DeadLetterLayer::new())
            .layer(retry())
            .layer(TimeoutLayer::new(Duration::from_secs(30)))
            .service(handler_fn(|event: Placed, _: Message| take(&event)));
        consume(messages, service)
    };
    let (ours, bare) = in_turn(rounds, layered, || bare_consume(messages)).await?;
    table.add("memory · worker, dead-letter, retry, timeout", ours, Some(bare), Goal::Rate(2.5e6));

    let idempotent = || {
        let store = MemoryIdempotencyStore::new().capacity(100_000);
        let service = ServiceBuilder::new()
            .layer(DeadLetterLayer::new())
            .layer(IdempotencyLayer::new(store))
            .layer(retry())
            .layer(TimeoutLayer::new(Duration::from_secs(30)))
            .service(handler_fn(|event: Placed, _: Message| take(&event)));
        consume(messages, service)
    };
    let (ours, bare) = in_turn(rounds, idempotent, || bare_consume(messages)).await?;
    table.add("memory · the same with idempotency, 100k keys", ours, Some(bare), Goal::Rate(1.2e6));
    Ok(())
}

fn retry() -> RetryLayer {
    RetryLayer::new(Backoff::exponential(Duration::from_secs(1)).jitter(Jitter::Equal))
}

fn take(event: &Placed) -> std::future::Ready<()> {
    std::hint::black_box(event.id + event.total_cents + event.customer.len() as u64);
    ready(())
}

async fn publish(messages: usize) -> Result<f64, BoxError> {
    let broker = connect("memory://").await?;
    broker.declare(&Subscription::topic(Placed::TYPE).group("bench")).await?;
    let started = Instant::now();
    let tasks = [0, 1].map(|half| {
        let publisher = broker.publisher();
        tokio::spawn(async move {
            for id in 0..messages / 2 {
                publisher.publish(&placed(2 * id + half)).await?;
            }
            Ok::<_, anybroker::Error>(())
        })
    });
    for task in tasks {
        task.await??;
    }
    Ok(rate(messages, started))
}

async fn bare_publish(messages: usize) -> Result<f64, BoxError> {
    let (sender, _receiver) = mpsc::unbounded_channel::<Arc<Envelope>>();
    let started = Instant::now();
    let tasks = [0, 1].map(|half| {
        let sender = sender.clone();
        tokio::spawn(async move {
            for id in 0..messages / 2 {
                sender.send(Arc::new(placed(2 * id + half).to_envelope()?))?;
            }
            Ok::<_, BoxError>(())
        })
    });
    for task in tasks {
        task.await??;
    }
    Ok(rate(messages, started))
}

/// A worker over half a million waiting messages.
async fn consume<S>(messages: usize, service: S) -> Result<f64, BoxError>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let broker = connect("memory://").await?;
    let subscription = Subscription::topic(Placed::TYPE).group("bench");
    broker.declare(&subscription).await?;
    let publisher = broker.publisher();
    for id in 0..messages {
        publisher.publish(&placed(id)).await?;
    }
    let counted = Arc::new(Counted { left: AtomicUsize::new(messages), done: Notify::new() });
    let service = ServiceBuilder::new()
        .map_response({
            let counted = Arc::clone(&counted);
            move |outcome| {
                if counted.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    counted.done.notify_one();
                }
                outcome
            }
        })
        .service(service);
    let started = Instant::now();
    let worker = Worker::new(Arc::clone(&broker)).subscribe(subscription, service).start().await?;
    let report = worker
        .run_until(async {
            counted.done.notified().await;
        })
        .await?;
    let rate = rate(messages, started);
    assert_eq!(report.handled, messages as u64, "{report}");
    Ok(rate)
}

struct Counted {
    left: AtomicUsize,
    done: Notify,
}

/// Two tasks, each with a channel of its own, that decode what they take.
async fn bare_consume(messages: usize) -> Result<f64, BoxError> {
    let mut receivers = Vec::new();
    for half in [0, 1] {
        let (sender, receiver) = mpsc::unbounded_channel();
        for id in 0..messages / 2 {
            sender.send(Arc::new(placed(2 * id + half).to_envelope()?))?;
        }
        receivers.push(receiver);
    }
    let started = Instant::now();
    let tasks: Vec<_> = receivers
        .into_iter()
        .map(|mut receiver| {
            tokio::spawn(async move {
                while let Some(envelope) = receiver.recv().await {
                    let envelope: Arc<Envelope> = envelope;
                    take(&serde_json::from_slice(&envelope.payload)?).await;
                }
                Ok::<_, BoxError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(rate(messages, started))
}
