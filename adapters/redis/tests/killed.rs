//! The server is killed again and again while messages are published and handled.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{BoxError, Broker, Message, Outcome, Outgoing, Queue, Subscription, Worker};
use anybroker_testkit::brokers::{Redis, RedisVersion, Server};
use support::{connect, message, send};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;

const KILLS: usize = 5;
const KEYS: u64 = 9;

async fn launch(version: RedisVersion) -> Server {
    let launched = spawn_blocking(move || Redis::new(version).launch());
    launched.await.expect("no panic").expect("a server of its own")
}

async fn restart(mut server: Server) -> Server {
    let restarted = spawn_blocking(move || {
        server.restart().expect("it comes back");
        server
    });
    restarted.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_on_redis_7_0() {
    kill_the_server(RedisVersion::V7_0, Queue::new("killed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_on_redis_8() {
    kill_the_server(RedisVersion::V8, Queue::new("killed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_on_valkey_9() {
    kill_the_server(RedisVersion::Valkey9, Queue::new("killed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_in_order() {
    kill_the_server(RedisVersion::V8, Queue::new("killed").ordered().partitions(3)).await;
}

/// How often each message was handled; every tenth fails once, and waits.
#[derive(Clone, Default)]
struct Handled(Arc<Mutex<Vec<String>>>);

impl Handled {
    fn note(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    fn missing(&self, ids: &[String]) -> usize {
        let handled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handled: HashSet<_> = handled.iter().collect();
        ids.iter().filter(|id| !handled.contains(id)).count()
    }

    /// Checks that each key's messages were handled first in the order of their numbers.
    fn in_order(&self) {
        let handled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut seen, mut last) = (HashSet::new(), HashMap::new());
        for number in handled.iter().map(|id| id.parse::<u64>().expect("a number")) {
            if seen.insert(number) {
                let former = last.insert(number % KEYS, number);
                assert!(former < Some(number), "{number} came after {former:?}");
            }
        }
    }
}

async fn kill_the_server(version: RedisVersion, queue: Queue) {
    let mut server = launch(version).await;
    let broker = connect(server.url()).await;
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(2));
    let handled = Handled::default();
    // In order, it holds back its key meanwhile.
    let ordered = anybroker_core::Destination::from(queue.clone()).is_ordered();
    let after = if ordered { Duration::from_millis(20) } else { Duration::from_secs(6) };
    let service = service_fn({
        let handled = handled.clone();
        move |message: Message| {
            let id = message.envelope().id.clone();
            let fails = message.attempt() == 1 && id.ends_with('7');
            if !fails {
                handled.note(&id);
            }
            std::future::ready(Ok::<_, BoxError>(if fails {
                Outcome::Retry { after }
            } else {
                Outcome::Ack
            }))
        }
    });
    let worker = Worker::new(broker.clone()).concurrency(64).subscribe(subscription, service);
    let (stop, stopped) = oneshot::channel::<()>();
    let working = tokio::spawn(worker.start().await.expect("a worker").run_until(stopped));
    let (end, mut ended) = oneshot::channel::<()>();
    let publishing = tokio::spawn({
        let (producer, queue) = (broker.producer(), queue.clone());
        async move {
            let mut confirmed = Vec::new();
            for burst in 0.. {
                let sends: Vec<_> = (burst * 20..(burst + 1) * 20)
                    .map(|number| {
                        let envelope =
                            message(number.to_string()).with_key((number % KEYS).to_string());
                        (number.to_string(), producer.send(Outgoing::new(queue.clone(), envelope)))
                    })
                    .collect();
                for (id, send) in sends {
                    // What fails may or may not be there.
                    if send.await.is_ok() {
                        confirmed.push(id);
                    }
                }
                if ended.try_recv().is_ok() {
                    break;
                }
                sleep(Duration::from_millis(2)).await;
            }
            confirmed
        }
    });
    for _ in 0..KILLS {
        sleep(Duration::from_millis(fastrand::u64(200..900))).await;
        server = restart(server).await;
    }
    end.send(()).expect("the publisher waits for it");
    let confirmed = publishing.await.expect("no panic");
    assert!(confirmed.len() > 100, "{}", confirmed.len());
    let patience = Instant::now() + Duration::from_mins(1);
    while handled.missing(&confirmed) > 0 {
        let missing = handled.missing(&confirmed);
        assert!(Instant::now() < patience, "{missing} of {} are lost", confirmed.len());
        sleep(Duration::from_millis(100)).await;
    }
    stop.send(()).expect("the worker waits for it");
    working.await.expect("no panic").expect("a report");
    if ordered {
        handled.in_order();
    }
    println!("{KILLS} kills: {} confirmed, all handled", confirmed.len());
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_server_that_is_gone() {
    let mut server = launch(RedisVersion::V8).await;
    let broker = connect(server.url()).await;
    let subscription = Subscription::queue("gone");
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    for id in ["a", "b", "c"] {
        send(&broker, Queue::new("gone"), message(id)).await;
    }
    let held = support::receive(&mut consumer).await;
    let _server = spawn_blocking(move || {
        server.kill().expect("a server of its own");
        server
    });
    sleep(Duration::from_millis(300)).await;
    let _unawaited = held.settle(Outcome::Ack);
    let closed = timeout(Duration::from_secs(25), broker.close()).await;
    closed.expect("it closes without its server").expect("a close");
}
