//! Our side of the benches on brokers: the public API, as an application uses it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anybroker::{BoxError, Broker, Envelope, Message, Outcome, Queue, Subscription, Worker};
use tokio::sync::Notify;
use tower::service_fn;

use crate::measure::rate;

pub(crate) const PAYLOAD: [u8; 256] = [b'x'; 256];

/// What the bare client's messages carry beside their payload.
#[derive(Clone, Copy)]
pub(crate) enum Attributes {
    /// What an envelope carries.
    Same,
    None,
}

/// A queue that no other run uses.
pub(crate) fn new_queue() -> Queue {
    Queue::new(format!("bench-{}", Envelope::new("name", "").id))
}

/// The name by which the broker knows it.
pub(crate) fn name(queue: &Queue) -> String {
    anybroker::Destination::from(queue.clone()).name().to_owned()
}

/// Publishes, with so many in flight. The first is not counted: it opens what has to be opened.
pub(crate) async fn publish_all(
    broker: &Arc<dyn Broker>,
    queue: &Queue,
    messages: usize,
    in_flight: usize,
) -> Result<f64, BoxError> {
    let publisher = broker.publisher();
    let send = || {
        let envelope = Envelope::new("bench.message", &PAYLOAD[..]);
        publisher.publish_envelope(queue.clone(), envelope).start()
    };
    send().await?;
    let started = Instant::now();
    let mut window: VecDeque<anybroker::Confirmation> = VecDeque::with_capacity(in_flight);
    for _ in 1..messages {
        if window.len() == in_flight
            && let Some(oldest) = window.pop_front()
        {
            oldest.await?;
        }
        window.push_back(send());
    }
    for confirmation in window {
        confirmation.await?;
    }
    Ok(rate(messages, started))
}

/// What a worker's run took, in messages per second.
pub(crate) struct Consumed {
    /// From before it was started until everything was settled.
    pub(crate) in_all: f64,
    /// From before it was started until the last one was handled.
    pub(crate) until_handled: f64,
    /// From the first to the last: joining a group is not counted.
    pub(crate) between: f64,
}

/// Handles what is there, so many at once.
pub(crate) async fn consume_all(
    broker: &Arc<dyn Broker>,
    queue: Queue,
    messages: usize,
    concurrency: usize,
) -> Result<Consumed, BoxError> {
    let left = Arc::new((AtomicUsize::new(messages), Notify::new()));
    let first = Arc::new(OnceLock::new());
    let service = service_fn({
        let (left, first) = (Arc::clone(&left), Arc::clone(&first));
        move |message: Message| {
            first.get_or_init(Instant::now);
            std::hint::black_box(message.envelope().payload.len());
            if left.0.fetch_sub(1, Ordering::Relaxed) == 1 {
                left.1.notify_one();
            }
            std::future::ready(Ok::<_, BoxError>(Outcome::Ack))
        }
    });
    let started = Instant::now();
    let worker = Worker::new(Arc::clone(broker))
        .subscribe(Subscription::queue(queue), service)
        .concurrency(concurrency)
        .start()
        .await?;
    let (mut until_handled, mut between) = (0.0, 0.0);
    let report = worker
        .run_until(async {
            left.1.notified().await;
            until_handled = rate(messages, started);
            between = rate(messages, *first.get_or_init(Instant::now));
        })
        .await?;
    let in_all = rate(messages, started);
    assert_eq!(report.handled, messages as u64, "{report}");
    Ok(Consumed { in_all, until_handled, between })
}
