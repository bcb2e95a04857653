//! Consumers that stand still for longer than their lease, and then go on as if nothing had been.

mod support;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anybroker_core::{Broker, ErrorKind, Outcome, Queue, Subscription};
use support::{ack, connect, message, receive, send, servers, try_receive, unique};

const SECOND: Duration = Duration::from_secs(1);

/// A consumer whose every thread stands still, as under SIGSTOP, from its first delivery until it is
/// told to go on; then it settles that, and receives until it is told to end.
struct Frozen {
    holds: mpsc::Receiver<String>,
    go_on: mpsc::Sender<()>,
    settled: mpsc::Receiver<Option<ErrorKind>>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Frozen {
    fn start(url: String, subscription: Subscription) -> Self {
        let ((held, holds), (go_on, goes_on), (settle, settled)) =
            (mpsc::channel(), mpsc::channel::<()>(), mpsc::channel());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let broker = connect(&url).await;
                let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
                let delivery = receive(&mut consumer).await;
                held.send(delivery.envelope().id.clone()).expect("somebody waits");
                goes_on.recv().expect("it goes on");
                let error = delivery.settle(Outcome::Ack).await.err().map(|error| error.kind());
                settle.send(error).expect("somebody waits");
                let mut more = Vec::new();
                while let Some(delivery) = try_receive(&mut consumer, 2 * SECOND).await {
                    more.push(delivery.envelope().id.clone());
                    ack(delivery).await;
                }
                broker.close().await.expect("a close");
                more
            })
        });
        Self { holds, go_on, settled, thread }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_consumer_settles_nothing_that_others_have_taken_over() {
    for url in servers() {
        freeze(&url, Queue::new(unique("frozen"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_of_an_ordered_partition_lets_nothing_pass() {
    for url in servers() {
        freeze(&url, Queue::new(unique("frozen")).ordered()).await;
    }
}

async fn freeze(url: &str, queue: Queue) {
    let subscription = Subscription::queue(queue.clone()).lease(SECOND);
    let broker = connect(url).await;
    let ids: Vec<_> = (0..5).map(|number| format!("m{number}")).collect();
    for id in &ids {
        send(&broker, queue.clone(), message(id).with_key("k")).await;
    }
    let frozen = Frozen::start(url.to_owned(), subscription.clone());
    let frozen = tokio::task::spawn_blocking(move || {
        assert_eq!(frozen.holds.recv().expect("it holds one"), "m0");
        frozen
    });
    let frozen = frozen.await.expect("no panic");
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let mut taken = Vec::new();
    for _ in &ids {
        taken.push(receive(&mut consumer).await);
    }
    let found: Vec<_> = taken.iter().map(|delivery| delivery.envelope().id.clone()).collect();
    assert_eq!(found, ids, "{url}");
    assert_eq!(taken[0].attempt(), 2, "{url}");
    frozen.go_on.send(()).expect("it is there");
    let frozen = tokio::task::spawn_blocking(move || {
        (frozen.settled.recv().expect("it settled"), frozen.thread)
    });
    let (settled, thread) = frozen.await.expect("no panic");
    assert_eq!(settled, Some(ErrorKind::StaleDelivery), "{url}");
    for delivery in taken {
        ack(delivery).await;
    }
    let more = tokio::task::spawn_blocking(|| thread.join().expect("no panic"));
    assert_eq!(more.await.expect("no panic"), [""; 0], "{url}: it was all in other hands");
    assert!(try_receive(&mut consumer, SECOND).await.is_none(), "{url}");
    broker.close().await.expect("a close");
}
