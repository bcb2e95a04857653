//! What an operator reads: each at WARN, once, with what it is about.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Envelope, Message, Outcome, Outgoing, Queue, RunningWorker, Subscription,
    Worker,
};
use anybroker_testkit::Log;
use tower::service_fn;

fn count(parts: &[&str]) -> usize {
    Log::keep().lines(parts).len()
}

/// A worker whose handler runs `block` on its thread, with a message for it.
async fn working(queue: &'static str, block: fn()) -> RunningWorker {
    Log::keep();
    let broker: Arc<dyn Broker> =
        anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap();
    let handler = service_fn(move |_: Message| async move {
        block();
        Ok::<_, BoxError>(Outcome::Ack)
    });
    let worker = Worker::new(broker.clone()).subscribe(Subscription::queue(queue), handler);
    let running = worker.start().await.unwrap();
    let sent = Outgoing::new(Queue::new(queue), Envelope::new("work", "{}"));
    broker.producer().send(sent).await.unwrap();
    running
}

#[tokio::test]
async fn a_worker_that_is_dropped_is_named() {
    const DROPPED: &str = "a running worker was dropped";
    drop(working("left-alone", || ()).await);
    assert_eq!(count(&["left-alone", DROPPED]), 1);
    working("waited-for", || ()).await.run_until(async {}).await.unwrap();
    assert_eq!(count(&["waited-for", DROPPED]), 0);
}

#[tokio::test]
async fn a_handler_that_blocks_its_thread_is_named_while_it_does() {
    let running = working("standing", || {
        // Longer than two looks a second apart.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(count(&["standing", "blocks its thread for over a second"]), 1);
    });
    let report = running.await.run_until(tokio::time::sleep(Duration::from_millis(50))).await;
    assert_eq!(report.unwrap().handled, 1, "the line was there");
}
