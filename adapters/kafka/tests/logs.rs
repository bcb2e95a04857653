//! What a log makes hard: gaps, rebalances, held keys, retention, transactions.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Destination, Envelope, ErrorKind, Message, Outcome, Outgoing, Queue,
    RetryClass, Subscription, Topic, Worker,
};
use anybroker_kafka::rdkafka::admin::{AdminClient, AdminOptions};
use anybroker_kafka::rdkafka::client::DefaultClientContext;
use anybroker_kafka::rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use anybroker_kafka::rdkafka::{Offset, TopicPartitionList};
use anybroker_kafka::{GroupProtocol, KafkaBroker};
use support::{
    ack, builder, connect, connect_single, depth, id, next, receive, send, send_numbers,
    try_receive, unique,
};
use tokio::sync::oneshot;
use tower::service_fn;

const SECONDS: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_only_the_gap_comes_back() {
    let broker = connect_single().await;
    let subscription = Subscription::queue(unique("gap"));
    send_numbers(&broker, subscription.destination(), 10).await;
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let mut held = Vec::new();
    for _ in 0..10 {
        let delivery = receive(&mut consumer).await;
        match &*id(&delivery) {
            "0" | "4" | "5" => held.push(delivery),
            _ => ack(delivery).await,
        }
    }
    held.into_iter().for_each(std::mem::forget);
    broker.close().await.expect("a closed broker");
    let broker = connect_single().await;
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for expected in ["0", "4", "5"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!((&*id(&delivery), delivery.attempt()), (expected, 2));
        ack(delivery).await;
    }
    let later = Envelope::new("number", "{}").with_id("later");
    send(&broker, subscription.destination().clone(), later).await;
    assert_eq!(id(&receive(&mut consumer).await), "later", "nothing else comes before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_in_mid_work_loses_nothing_and_repeats_at_most_the_window() {
    rebalance(GroupProtocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_one_that_the_broker_decides() {
    rebalance(GroupProtocol::Consumer).await;
}

async fn rebalance(protocol: GroupProtocol) {
    const COUNT: usize = 3000;
    const CONCURRENCY: usize = 16;
    let connect = || async { builder().group_protocol(protocol).connect().await.expect("one") };
    let publisher = connect().await;
    let subscription = Subscription::queue(unique("rebalance"));
    let destination = subscription.destination().clone();
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let mut workers = Vec::new();
    let mut moved = 0;
    let sending = tokio::spawn({
        let (publisher, destination) = (publisher.clone(), destination.clone());
        async move { send_numbers(&publisher, &destination, COUNT).await }
    });
    // Members come and go while messages are handled.
    for round in 0..6 {
        let broker = connect().await;
        let seen = Arc::clone(&seen);
        let service = service_fn(move |message: Message| {
            let seen = Arc::clone(&seen);
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                *seen.lock().unwrap().entry(message.envelope().id.clone()).or_default() += 1;
                Ok::<_, BoxError>(Outcome::Ack)
            }
        });
        let worker = Worker::new(broker.clone()).concurrency(CONCURRENCY);
        let running = worker.subscribe(subscription.clone(), service).start().await.expect("one");
        let (stop, stopped) = oneshot::channel::<()>();
        workers.push((tokio::spawn(running.run_until(stopped)), stop, broker));
        tokio::time::sleep(Duration::from_millis(400)).await;
        if round % 2 == 1 {
            let (task, stop, broker) = workers.remove(0);
            drop(stop);
            task.await.expect("no panic").expect("a drained worker");
            broker.close().await.expect("a closed broker");
            moved += 1;
        }
    }
    sending.await.expect("all sent");
    let end = std::time::Instant::now() + 2 * SECONDS;
    while seen.lock().unwrap().len() < COUNT {
        assert!(std::time::Instant::now() < end, "{} of {COUNT}", seen.lock().unwrap().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (task, stop, _) in workers {
        drop(stop);
        task.await.expect("no panic").expect("a drained worker");
    }
    let repeated: u32 = seen.lock().unwrap().values().map(|count| count - 1).sum();
    let window = (6 + moved) * CONCURRENCY * 3;
    assert!(repeated as usize <= window, "{repeated} repeated, {window} at most");
    depth(&publisher, &subscription, |depth| {
        (depth.ready, depth.in_flight, depth.dead_lettered) == (Some(0), Some(0), Some(0))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_slower_than_the_longest_poll_interval_keeps_its_message() {
    let broker = builder().native_option("max.poll.interval.ms", "6000").partitions(1).connect();
    let broker = broker.await.expect("a connection");
    let subscription = Subscription::queue(unique("slow"));
    send_numbers(&broker, subscription.destination(), 1).await;
    let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
    let held = receive(&mut consumer).await;
    // More than are taken at once: the partition is not read meanwhile.
    send_numbers(&broker, subscription.destination(), 2000).await;
    assert!(try_receive(&mut consumer, Duration::from_secs(9)).await.is_none());
    assert!(!held.is_lost(), "the group has not moved on without it");
    ack(held).await;
    for _ in 0..2000 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1);
        ack(delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_under_retry_never_see_each_others_redeliveries() {
    const COUNT: u32 = 60;
    let broker = connect().await;
    let topic = Topic::new(unique("retries"));
    let groups = ["one", "two"].map(|group| Subscription::topic(topic.clone()).group(group));
    let mut tasks = Vec::new();
    for subscription in groups {
        let mut consumer = broker.consume(&subscription, 16).await.expect("a consumer");
        let broker = Arc::clone(&broker);
        tasks.push(tokio::spawn(async move {
            let mut attempts: HashMap<String, Vec<u32>> = HashMap::new();
            let retried: u32 = if subscription.group_name() == "one" { 3 } else { 1 };
            for _ in 0..COUNT * (retried + 1) {
                let delivery = receive(&mut consumer).await;
                attempts.entry(id(&delivery)).or_default().push(delivery.attempt());
                let outcome = match delivery.attempt() {
                    attempt if attempt > retried => Outcome::Ack,
                    _ => Outcome::Retry { after: Duration::from_millis(30) },
                };
                delivery.settle(outcome).await.expect("a settlement");
            }
            // No more is there to come.
            depth(&broker, &subscription, |depth| {
                (depth.ready, depth.in_flight, depth.delayed) == (Some(0), Some(0), Some(0))
            })
            .await;
            assert_eq!(attempts.len(), COUNT as usize);
            let expected: Vec<_> = (1..=retried + 1).collect();
            assert!(attempts.values().all(|seen| *seen == expected), "{attempts:?}");
        }));
    }
    send_numbers(&broker, &topic.into(), COUNT as usize).await;
    for task in tasks {
        task.await.expect("each group has its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_window_of_held_keys_stops_the_partition_and_loses_no_order() {
    const HELD: usize = 60;
    let broker = connect().await;
    let queue = Queue::new(unique("held")).ordered();
    let producer = broker.producer();
    let keyed = |number: usize, key: String| {
        let envelope = Envelope::new("number", "{}").with_id(number.to_string()).with_key(key);
        producer.send(Outgoing::new(queue.clone(), envelope))
    };
    let mut sends: Vec<_> = (0..HELD).map(|number| keyed(number, format!("h{number}"))).collect();
    sends.push(keyed(HELD, "free".to_owned()));
    for send in sends {
        send.await.expect("a confirmed publish");
    }
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let service = service_fn({
        let seen = Arc::clone(&seen);
        move |message: Message| {
            let seen = Arc::clone(&seen);
            async move {
                let id = message.envelope().id.clone();
                if message.attempt() == 1 && id != HELD.to_string() {
                    return Ok(Outcome::Retry { after: Duration::from_secs(1) });
                }
                seen.lock().unwrap().push(id);
                Ok::<_, BoxError>(Outcome::Ack)
            }
        }
    });
    // A window of 2 + 4 messages: all of them held back.
    let worker = Worker::new(broker.clone()).concurrency(1);
    let running = worker.subscribe(Subscription::queue(queue.clone()), service).start().await;
    let running = running.expect("a worker");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(running.run_until(stopped));
    let end = std::time::Instant::now() + 3 * SECONDS;
    while seen.lock().unwrap().len() <= HELD {
        assert!(std::time::Instant::now() < end, "{:?}", seen.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(stop);
    let report = task.await.expect("no panic").expect("a drained worker");
    assert_eq!((report.handled, report.retried), (HELD as u64 + 1, HELD as u64), "{report}");
    let free = HELD.to_string();
    assert_ne!(seen.lock().unwrap()[0], free, "it was behind a full window");
    let distinct: HashSet<_> = seen.lock().unwrap().iter().cloned().collect();
    assert_eq!(distinct.len(), HELD + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_ran_over_a_groups_offset_is_an_error_and_no_skip() {
    let broker = connect_single().await;
    let topic = Topic::new(unique("retention"));
    let subscription = Subscription::topic(topic.clone()).group("late");
    broker.declare(&subscription).await.expect("a group");
    send_numbers(&broker, &topic.clone().into(), 10).await;
    // What retention does in its own time.
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let mut list = TopicPartitionList::new();
    let name = Destination::from(topic.clone()).name().to_owned();
    list.add_partition_offset(&name, 0, Offset::Offset(4)).expect("an offset");
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted records");
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    let error = match next(&mut consumer, SECONDS).await {
        Some(Err(error)) => error,
        other => panic!("an error was expected, not {other:?}"),
    };
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::NotFound, RetryClass::Permanent));
    let text = error.to_string();
    let expected = format!(
        "partition 0 of topic {name:?} keeps the offsets from 4 to 10, and the group has handled those before 0"
    );
    assert!(text.contains(&expected) && text.contains("--reset-offsets"), "{text}");
    // It stays one for whoever comes next.
    drop(consumer);
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    assert!(matches!(next(&mut consumer, SECONDS).await, Some(Err(_))));
}

/// Writes messages in transactions of their own; every second one is aborted.
fn transactions(broker: &KafkaBroker, topic: &str, count: usize) {
    let mut config = broker.client_config();
    let producer: BaseProducer =
        config.set("transactional.id", unique("foreign")).create().expect("a producer");
    producer.init_transactions(SECONDS).expect("transactions");
    for number in 0..count {
        producer.begin_transaction().expect("a transaction");
        let payload = number.to_string();
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(topic).payload(&*payload).partition(0);
        producer.send(record).expect("a queued message");
        match number % 2 {
            0 => producer.commit_transaction(SECONDS).expect("a commit"),
            _ => {
                producer.flush(SECONDS).expect("stored");
                producer.abort_transaction(SECONDS).expect("an abort");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_markers_do_not_disturb_the_depth() {
    let broker = connect_single().await;
    let queue = unique("transactions");
    let subscription = Subscription::queue(queue.clone());
    broker.declare(&subscription).await.expect("a queue");
    tokio::task::spawn_blocking({
        let broker = broker.clone();
        move || transactions(&broker, &queue, 8)
    })
    .await
    .expect("transactions");
    assert_eq!(broker.depth(&subscription).await.expect("a depth").ready, Some(4));
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    for expected in ["0", "2", "4", "6"] {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.envelope().payload, expected, "aborted ones are not delivered");
        ack(delivery).await;
    }
    depth(&broker, &subscription, |depth| (depth.ready, depth.in_flight) == (Some(0), Some(0)))
        .await;
    consumer.close().await.expect("a closed consumer");
    assert_eq!(broker.depth(&subscription).await.expect("a depth").ready, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_runs_alone_and_its_neighbours_are_not_given_up() {
    let subscription = Subscription::queue(unique("suspects")).max_deliveries(4);
    let broker = connect_single().await;
    send(&broker, subscription.destination().clone(), Envelope::new("t", "{}").with_id("killer"))
        .await;
    send_numbers(&broker, subscription.destination(), 5).await;
    broker.close().await.expect("a closed broker");
    let mut attempts = Vec::new();
    for crash in 0..4 {
        let broker = connect_single().await;
        let mut consumer = broker.consume(&subscription, 3).await.expect("a consumer");
        let killer = receive(&mut consumer).await;
        assert_eq!(id(&killer), "killer");
        attempts.push(killer.attempt());
        let beside = try_receive(&mut consumer, Duration::from_secs(1)).await;
        assert_eq!(beside.is_some(), crash < 2, "from its second return on it is alone");
        [Some(killer), beside].into_iter().flatten().for_each(std::mem::forget);
        broker.close().await.expect("a closed broker");
    }
    assert_eq!(attempts, [1, 2, 3, 4]);
    let broker = connect_single().await;
    let handled = Arc::new(AtomicUsize::new(0));
    let service = service_fn({
        let handled = Arc::clone(&handled);
        move |_: Message| {
            handled.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, BoxError>(Outcome::Ack))
        }
    });
    let worker = Worker::new(broker.clone()).subscribe(subscription.clone(), service);
    let running = worker.start().await.expect("a worker");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(running.run_until(stopped));
    depth(&broker, &subscription, |depth| {
        (depth.ready, depth.in_flight, depth.dead_lettered) == (Some(0), Some(0), Some(1))
    })
    .await;
    drop(stop);
    task.await.expect("no panic").expect("a drained worker");
    assert_eq!(handled.load(Ordering::Relaxed), 5, "the innocent ones");
}

/// It was the network, or the broker: no message is to blame.
#[tokio::test(flavor = "multi_thread")]
async fn suspects_of_a_group_that_was_lost_twice_run_together() {
    const COUNT: usize = 64;
    let connect = || async { builder().partitions(2).connect().await.expect("a connection") };
    let subscription = Subscription::queue(unique("lost"));
    let broker = connect().await;
    let producer = broker.producer();
    let sends: Vec<_> = (0..COUNT)
        .map(|number| {
            let envelope = Envelope::new("number", "{}").with_key(number.to_string());
            producer.send(Outgoing::new(subscription.destination().clone(), envelope))
        })
        .collect();
    for send in sends {
        send.await.expect("a confirmed publish");
    }
    for _ in 0..2 {
        let broker = connect().await;
        let mut consumer = broker.consume(&subscription, COUNT).await.expect("a consumer");
        for _ in 0..COUNT {
            std::mem::forget(receive(&mut consumer).await);
        }
        broker.close().await.expect("a closed broker");
    }
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let service = service_fn({
        let most = Arc::clone(&most);
        move |_: Message| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(300)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, BoxError>(Outcome::Ack)
            }
        }
    });
    let worker = Worker::new(broker.clone()).concurrency(COUNT);
    let running = worker.subscribe(subscription.clone(), service).start().await.expect("a worker");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(running.run_until(stopped));
    depth(&broker, &subscription, |depth| {
        (depth.ready, depth.in_flight, depth.dead_lettered) == (Some(0), Some(0), Some(0))
    })
    .await;
    drop(stop);
    assert_eq!(task.await.expect("no panic").expect("a drained worker").handled, COUNT as u64);
    let most = most.load(Ordering::SeqCst);
    assert!(most >= 8, "at most {most} at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_offsets_kafka_has_forgotten_begins_at_the_start_again() {
    let broker = connect_single().await;
    let topic = Topic::new(unique("forgotten"));
    let subscription = Subscription::topic(topic.clone()).group("late");
    broker.declare(&subscription).await.expect("a group");
    send_numbers(&broker, &topic.into(), 3).await;
    // What the broker does a week after the last member has left.
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let group = subscription.stored_name();
    admin.delete_groups(&[&group], &AdminOptions::new()).await.expect("a deleted group");
    let other = connect_single().await;
    let mut consumer = other.consume(&subscription, 10).await.expect("a consumer");
    for _ in 0..3 {
        ack(receive(&mut consumer).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_added_later_is_read_from_its_start() {
    use anybroker_kafka::rdkafka::admin::NewPartitions;
    let broker = builder()
        .partitions(1)
        .native_option("topic.metadata.refresh.interval.ms", "500")
        .connect()
        .await
        .expect("a connection");
    let topic = Topic::new(unique("grown"));
    let subscription = Subscription::topic(topic.clone()).group("one");
    let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
    send(&broker, topic.clone(), Envelope::new("t", "{}")).await;
    ack(receive(&mut consumer).await).await;
    let name = Destination::from(topic).name().to_owned();
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    admin
        .create_partitions(&[NewPartitions::new(&name, 2)], &AdminOptions::new())
        .await
        .expect("another partition");
    let producer: BaseProducer = broker.client_config().create().expect("a producer");
    for number in 0..5 {
        let payload = number.to_string();
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(&name).payload(&*payload).partition(1);
        producer.send(record).expect("a queued message");
    }
    producer.flush(SECONDS).expect("stored");
    for number in 0..5 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.envelope().payload, number.to_string());
        ack(delivery).await;
    }
}
