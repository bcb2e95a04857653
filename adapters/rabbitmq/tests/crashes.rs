//! What a crash counts: one attempt for each message that a handler may have seen, however often
//! the server returns it.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Broker, Consumer, Delivery, Envelope, Outgoing, Queue, Subscription, now};
use anybroker_rabbitmq::RabbitmqBroker;
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion, Server};
use support::{ack, connect, delete, send, servers, try_receive, unique};
use tokio::time::{Instant, sleep};

/// How often a message ends its process.
const CRASHES: u32 = 5;

const PATIENCE: Duration = Duration::from_secs(40);

async fn launch(version: RabbitMqVersion) -> Server {
    tokio::task::spawn_blocking(move || RabbitMq::new(version).launch()).await.unwrap().unwrap()
}

fn message(id: impl Into<String>) -> Envelope {
    let id = id.into();
    Envelope::new("t", "x").with_id(id.clone()).with_key(id)
}

/// Receives from whichever consumer gets something, until there are so many.
async fn gather(consumers: &mut [Box<dyn Consumer>], count: usize) -> Vec<Delivery> {
    let (mut gathered, end) = (Vec::new(), Instant::now() + PATIENCE);
    while gathered.len() < count {
        assert!(Instant::now() < end, "{} of {count}", gathered.len());
        for consumer in &mut *consumers {
            gathered.extend(try_receive(consumer, Duration::from_millis(20)).await);
        }
    }
    gathered
}

/// Many consumers, as of several processes, of which a crash returns each message.
async fn crash_counts_once(queue: Queue) {
    for version in [RabbitMqVersion::V3_10, RabbitMqVersion::V4_3] {
        let mut server = launch(version).await;
        let subscription = Subscription::queue(queue.clone());
        let (mut brokers, mut consumers) = (Vec::<Arc<RabbitmqBroker>>::new(), Vec::new());
        for _ in 0..4 {
            let broker = connect(server.url()).await;
            for _ in 0..4 {
                consumers.push(broker.consume(&subscription, 32).await.expect("a consumer"));
            }
            brokers.push(broker);
        }
        for number in 0..10 {
            send(&brokers[0], queue.clone(), message(format!("m{number}"))).await;
        }
        let mut held = gather(&mut consumers, 10).await;
        for attempt in [2, 3] {
            server = tokio::task::spawn_blocking(move || {
                server.restart().expect("it starts again");
                server
            })
            .await
            .expect("no panic");
            drop(held);
            held = Vec::new();
            let mut attempts = HashMap::new();
            while attempts.len() < 10 {
                let delivery = gather(&mut consumers, 1).await.remove(0);
                attempts.insert(delivery.envelope().id.clone(), delivery.attempt());
                if attempt == 3 {
                    // After two of them it may have been the cause, and comes alone.
                    ack(delivery).await;
                } else {
                    held.push(delivery);
                }
            }
            let all = attempts.values().all(|found| *found == attempt);
            assert!(all, "{version:?}, attempt {attempt}: {attempts:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_counts_once_in_an_ordered_queue() {
    crash_counts_once(Queue::new("ordered").ordered()).await;
}

/// One of many messages ends its process each time, before the handlers of the others are done.
async fn what_kills_kills_alone(shape: impl Fn(Queue) -> Queue) {
    for (server, url) in servers() {
        let direct = connect(&url).await;
        let queue = shape(Queue::new(unique("kills")));
        let subscription = Subscription::queue(queue.clone());
        let producer = direct.producer();
        let ids = ["kills".to_owned()].into_iter().chain((0..20).map(|number| number.to_string()));
        let sends: Vec<_> =
            ids.map(|id| producer.send(Outgoing::new(queue.clone(), message(id)))).collect();
        for sent in sends {
            sent.await.expect("a confirm");
        }
        let (mut runs, mut crashes) = (HashMap::<String, Vec<u32>>::new(), 0);
        let mut done = 0;
        while crashes < CRASHES {
            let proxy = Proxy::start(&url).await.expect("a proxy");
            let broker = connect(proxy.url()).await;
            let mut consumer = broker.consume(&subscription, 30).await.expect("a consumer");
            let mut held = Vec::new();
            let end = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < end, "{server}: crash {crashes}, {done} done: {runs:?}");
                let next = try_receive(&mut consumer, Duration::from_millis(100)).await;
                let Some(delivery) = next else {
                    // They were handled meanwhile.
                    for delivery in held.drain(..) {
                        done += 1;
                        ack(delivery).await;
                    }
                    continue;
                };
                let id = delivery.envelope().id.clone();
                runs.entry(id.clone()).or_default().push(delivery.attempt());
                let kills = id == "kills";
                // A worker runs it no earlier.
                let due = delivery.hop().not_before;
                let due = due.and_then(|due| due.duration_since(now()).ok()).unwrap_or_default();
                if kills {
                    sleep(due).await;
                }
                held.push(delivery);
                if kills {
                    break;
                }
            }
            // Others may be about to come.
            sleep(Duration::from_millis(50)).await;
            crashes += 1;
            // For good: it finds no way to the server again.
            drop(proxy);
            for delivery in held {
                std::mem::forget(delivery);
            }
            std::mem::forget(consumer);
            std::mem::forget(broker);
        }
        let kills = &runs["kills"];
        assert_eq!(*kills, (1..=CRASHES).collect::<Vec<_>>(), "{server}: one for each crash");
        // What comes behind it in an ordered queue waits until it is given up.
        let mut consumer = direct.consume(&subscription, 30).await.expect("a consumer");
        while done < 20 {
            let delivery = gather(std::slice::from_mut(&mut consumer), 1).await.remove(0);
            let id = delivery.envelope().id.clone();
            done += u32::from(id != "kills");
            runs.entry(id).or_default().push(delivery.attempt());
            ack(delivery).await;
        }
        drop(consumer);
        let most = runs.iter().filter(|(id, _)| *id != "kills").flat_map(|(_, runs)| runs).max();
        assert!(most.is_some_and(|most| *most <= 3), "{server}: the others: {runs:?}");
        delete(&direct, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_process_kills_alone_in_an_ordered_queue() {
    what_kills_kills_alone(Queue::ordered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_process_kills_alone_in_an_unordered_queue() {
    what_kills_kills_alone(|queue| queue).await;
}
