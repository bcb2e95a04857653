//! An ordered group's partitions are shared by the processes that consume it.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{BoxError, Broker, Message, Outcome, Queue, Subscription, Worker};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::cmd;
use support::{connect, message, run, send, servers, unique};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tower::service_fn;

const PARTITIONS: u16 = 4;
const KEYS: u64 = 20;

/// How many partitions each process has.
async fn shares(broker: &RedisBroker, name: &str) -> Vec<usize> {
    let mut shares = HashMap::<String, usize>::new();
    for index in 0..PARTITIONS {
        let lock = format!("{{{name}}}--{name}--lock--p{index}");
        let token: Option<String> = run(broker, cmd("GET").arg(lock)).await;
        if let Some(token) = token {
            *shares.entry(token[..16].to_owned()).or_default() += 1;
        }
    }
    let mut shares: Vec<_> = shares.into_values().collect();
    shares.sort_unstable();
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_comes_later_gets_its_share_and_order_is_kept() {
    for url in servers() {
        let name = unique("shared");
        let queue = Queue::new(name.clone()).ordered().partitions(PARTITIONS);
        let observer = connect(&url).await;
        let handled = Arc::new(Mutex::new(Vec::new()));
        let start = async || {
            let (broker, handled) = (connect(&url).await, Arc::clone(&handled));
            let service = service_fn(move |message: Message| {
                let handled = Arc::clone(&handled);
                async move {
                    // In hand for a while, so that a partition is given up with some of it out.
                    sleep(Duration::from_millis(5)).await;
                    let id = message.envelope().id.parse::<u64>()?;
                    handled.lock().unwrap_or_else(PoisonError::into_inner).push(id);
                    Ok::<_, BoxError>(Outcome::Ack)
                }
            });
            let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(10));
            let worker = Worker::new(broker.clone()).subscribe(subscription, service);
            let worker = worker.concurrency(16).start().await.expect("a worker");
            let (stop, stopped) = oneshot::channel::<()>();
            (broker, stop, tokio::spawn(worker.run_until(stopped)))
        };
        let mut sent = 0;
        let mut until = async |expected: &[usize]| {
            let end = Instant::now() + Duration::from_secs(30);
            while shares(&observer, &name).await != expected {
                assert!(Instant::now() < end, "{url}: {:?}", shares(&observer, &name).await);
                for _ in 0..20 {
                    let envelope = message(sent.to_string()).with_key((sent % KEYS).to_string());
                    send(&observer, queue.clone(), envelope).await;
                    sent += 1;
                }
            }
            sent
        };
        let first = start().await;
        until(&[4]).await;
        let second = start().await;
        until(&[2, 2]).await;
        // Who ends leaves its share to the others.
        first.1.send(()).expect("it waits for it");
        first.2.await.expect("no panic").expect("a report");
        first.0.close().await.expect("a close");
        let sent = until(&[4]).await;
        let count = || handled.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let end = Instant::now() + Duration::from_secs(30);
        while count() < sent {
            assert!(Instant::now() < end, "{url}: {} of {sent}", count());
            sleep(Duration::from_millis(20)).await;
        }
        second.1.send(()).expect("it waits for it");
        second.2.await.expect("no panic").expect("a report");
        let handled = handled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_eq!(handled.len() as u64, sent, "{url}: each once");
        let mut last = HashMap::new();
        for number in handled {
            assert!(last.insert(number % KEYS, number) < Some(number), "{url}: {number}");
        }
        second.0.close().await.expect("a close");
        observer.close().await.expect("a close");
    }
}
