//! What happens to messages when their partition goes to another process.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Envelope, Message, Outcome, Outgoing, Subscription, Worker,
};
use support::{ack, builder, connect, id, receive, send_numbers, unique};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower::service_fn;

const SECONDS: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_left_while_it_was_not_read_is_read_when_it_comes_back() {
    const COUNT: usize = 4000;
    let broker = builder().partitions(2).connect().await.expect("a connection");
    let subscription = Subscription::queue(unique("paused"));
    let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
    send_numbers(&broker, subscription.destination(), COUNT).await;
    // Both partitions have more in memory than is to be kept.
    let held = receive(&mut consumer).await;
    let other = connect().await;
    let mut beside = other.consume(&subscription, 1).await.expect("another consumer");
    drop(receive(&mut beside).await);
    drop(beside);
    other.close().await.expect("a closed broker");
    let mut seen = HashSet::new();
    // If its partition was the one that left, it comes again.
    let first = id(&held);
    if held.settle(Outcome::Ack).await.is_ok() {
        seen.insert(first);
    }
    while seen.len() < COUNT {
        let delivery = receive(&mut consumer).await;
        seen.insert(id(&delivery));
        ack(delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_handler_neither_delays_a_handover_nor_counts() {
    const COUNT: usize = 2000;
    let publisher = builder().partitions(2).connect().await.expect("a connection");
    let subscription = Subscription::queue(unique("handover"));
    // By their keys they are in both partitions, whichever leaves.
    let sends: Vec<_> = (0..COUNT)
        .map(|number| {
            let envelope = Envelope::new("number", "{}").with_key(number.to_string());
            publisher.producer().send(Outgoing::new(subscription.destination().clone(), envelope))
        })
        .collect();
    for send in sends {
        send.await.expect("a confirmed publish");
    }
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let mut workers = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..2 {
        let broker = connect().await;
        let (first, begun) = oneshot::channel::<()>();
        let (seen, first) = (Arc::clone(&seen), Arc::new(Mutex::new(Some(first))));
        let service = service_fn(move |message: Message| {
            let (seen, first) = (Arc::clone(&seen), Arc::clone(&first));
            async move {
                first.lock().unwrap().take().map(|first| first.send(()));
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut seen = seen.lock().unwrap();
                let attempts = seen.entry(message.envelope().id.clone()).or_default();
                *attempts = message.attempt().max(*attempts);
                Ok::<_, BoxError>(Outcome::Ack)
            }
        });
        let start = std::time::Instant::now();
        let worker = Worker::new(broker).concurrency(2).subscribe(subscription.clone(), service);
        let running = worker.start().await.expect("a worker");
        let (stop, stopped) = oneshot::channel::<()>();
        workers.push((tokio::spawn(running.run_until(stopped)), stop));
        begun.await.expect("a first message");
        taken.push(start.elapsed());
    }
    // Handlers may take ten seconds to finish what they run; these take none.
    assert!(taken[1] < Duration::from_secs(10), "{taken:?}");
    let end = std::time::Instant::now() + 3 * SECONDS;
    while seen.lock().unwrap().len() < COUNT {
        assert!(std::time::Instant::now() < end, "{} of {COUNT}", seen.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (task, stop) in workers {
        drop(stop);
        task.await.expect("no panic").expect("a drained worker");
    }
    let counted: Vec<_> = seen.lock().unwrap().values().copied().filter(|n| *n != 1).collect();
    assert!(counted.is_empty(), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_waits_in_the_process_keeps_its_attempts_when_its_partition_leaves() {
    const COUNT: usize = 20;
    let publisher = builder().partitions(2).connect().await.expect("a connection");
    let subscription = Subscription::queue(unique("retried"));
    for number in 0..COUNT {
        let envelope = Envelope::new("number", "{}").with_key(number.to_string());
        let outgoing = Outgoing::new(subscription.destination().clone(), envelope);
        publisher.producer().send(outgoing).await.expect("a confirmed publish");
    }
    let (see, mut seen) = mpsc::unbounded_channel();
    let mut attempts: HashMap<String, Vec<u32>> = HashMap::new();
    let mut workers = Vec::new();
    for tries in 1..=2 {
        let see = see.clone();
        let service = service_fn(move |message: Message| {
            let _ = see.send((message.envelope().id.clone(), message.attempt()));
            let outcome = match message.attempt() {
                1 => Outcome::Retry { after: Duration::from_secs(4) },
                _ => Outcome::Ack,
            };
            std::future::ready(Ok::<_, BoxError>(outcome))
        });
        let worker = Worker::new(connect().await).subscribe(subscription.clone(), service);
        let running = worker.start().await.expect("a worker");
        let (stop, stopped) = oneshot::channel::<()>();
        workers.push((tokio::spawn(running.run_until(stopped)), stop));
        // The second one joins while all of them wait in the first.
        let all = |seen: &HashMap<String, Vec<u32>>| {
            seen.len() == COUNT && seen.values().all(|attempts| attempts.contains(&tries))
        };
        while !all(&attempts) {
            let next = timeout(SECONDS, seen.recv()).await;
            let Ok(Some((id, attempt))) = next else { panic!("they stay away: {attempts:?}") };
            attempts.entry(id).or_default().push(attempt);
        }
    }
    for (task, stop) in workers {
        drop(stop);
        task.await.expect("no panic").expect("a drained worker");
    }
    while let Ok((id, attempt)) = seen.try_recv() {
        attempts.entry(id).or_default().push(attempt);
    }
    assert!(attempts.values().all(|attempts| *attempts == [1, 2]), "{attempts:?}");
}
