//! What becomes of messages when streams, groups and leases change underneath.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, DeadLetterFilter, ErrorKind, Outcome, Outgoing, Queue, RetryClass, Subscription, Topic,
};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::cmd;
use anybroker_testkit::Proxy;
use support::{
    ack, ack_all, connect, message, receive, run, send, server, servers, try_receive, unique,
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

async fn length(broker: &RedisBroker, key: &str) -> usize {
    run(broker, cmd("XLEN").arg(key)).await
}

/// Waits until something is so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is().await {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_all_groups_have_finished_is_removed_and_nothing_else() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("trim");
        let group = |group: &'static str| Subscription::topic(name.clone()).group(group);
        for group in [group("fast"), group("slow"), group("absent")] {
            broker.declare(&group).await.expect("a group");
        }
        for number in 0..1000 {
            send(&broker, Topic::new(name.clone()), message(number.to_string())).await;
        }
        let mut fast = broker.consume(&group("fast"), 100).await.expect("a consumer");
        ack_all(&mut fast, 1000).await;
        // One group holds its first message, the other has none yet.
        let mut slow = broker.consume(&group("slow"), 100).await.expect("a consumer");
        let first = receive(&mut slow).await;
        ack_all(&mut slow, 599).await;
        sleep(3 * SECOND).await;
        assert_eq!(length(&broker, &name).await, 1000, "{url}");

        // The absent group reads and finishes half: the other one's first message stays.
        let mut absent = broker.consume(&group("absent"), 100).await.expect("a consumer");
        assert_eq!(ack_all(&mut absent, 500).await.len(), 500);
        sleep(3 * SECOND).await;
        assert_eq!(length(&broker, &name).await, 1000, "{url}");
        let id = first.envelope().id.clone();
        ack(first).await;
        until("what all have finished is removed", async || length(&broker, &name).await < 700)
            .await;
        let left = length(&broker, &name).await;
        assert!(left >= 500, "{left} are left, of which 500 nobody has handled yet");

        let mut rest = ack_all(&mut slow, 400).await;
        assert!(!rest.contains(&id));
        rest.truncate(0);
        assert_eq!(ack_all(&mut absent, 500).await.len(), 500);
        until("all is removed", async || length(&broker, &name).await <= 100).await;
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_groups_keeps_everything() {
    let broker = connect(&server()).await;
    let name = unique("kept");
    for number in 0..300 {
        send(&broker, Topic::new(name.clone()), message(number.to_string())).await;
    }
    sleep(3 * SECOND).await;
    assert_eq!(length(&broker, &name).await, 300);
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_under_a_slow_group_is_still_settled_from_what_is_in_hand() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("trimmed");
        let subscription = Subscription::queue(Queue::new(name.clone()));
        let mut consumer = broker.consume(&subscription, 3).await.expect("a consumer");
        for id in ["retried", "dead", "done"] {
            send(&broker, Queue::new(name.clone()), message(id)).await;
        }
        let held = [
            receive(&mut consumer).await,
            receive(&mut consumer).await,
            receive(&mut consumer).await,
        ];
        let _: usize = run(&broker, cmd("XTRIM").arg(&name).arg("MAXLEN").arg(0)).await;
        assert_eq!(length(&broker, &name).await, 0);
        for delivery in held {
            let outcome = match &*delivery.envelope().id {
                "retried" => Outcome::Retry { after: Duration::ZERO },
                "dead" => Outcome::dead_letter("test", "given up"),
                _ => Outcome::Ack,
            };
            delivery.settle(outcome).await.expect("a settlement");
        }
        let again = receive(&mut consumer).await;
        assert_eq!((&*again.envelope().id, again.attempt()), ("retried", 2), "{url}");
        ack(again).await;
        let all = DeadLetterFilter::all();
        let dead = broker.dead_letters(&subscription, &all, 9).await.expect("dead letters").entries;
        assert_eq!(dead[0].envelope.id, "dead");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_lost_its_message_takes_nothing_back() {
    for url in servers() {
        let (broker, other) = (connect(&url).await, connect(&url).await);
        let name = unique("lost");
        let subscription = Subscription::queue(Queue::new(name.clone())).lease(SECOND);
        send(&broker, Queue::new(name.clone()), message("m")).await;
        let mut first = broker.consume(&subscription, 1).await.expect("a consumer");
        let lost = receive(&mut first).await;
        let (settler, lease) = first.lease().expect("deliveries are leased");
        assert_eq!(lease, SECOND);
        let mut second = other.consume(&subscription, 1).await.expect("a consumer");
        let taken = receive(&mut second).await;
        assert_eq!(taken.attempt(), 2, "{url}");

        // Whatever the first one tries, the second one keeps it.
        settler.renew(&[lost.tag()]).await.expect("a renewal of nothing");
        assert!(settler.is_lost(lost.tag()));
        let owner: Vec<(String, String, u64, u64)> =
            run(&broker, cmd("XPENDING").arg(&name).arg(&name).arg("-").arg("+").arg(10)).await;
        assert_eq!((owner.len(), owner[0].3), (1, 2), "{owner:?}");
        let error = lost.settle(Outcome::Retry { after: Duration::ZERO }).await;
        assert_eq!(error.expect_err("it is lost").kind(), ErrorKind::StaleDelivery);
        ack(taken).await;
        assert!(try_receive(&mut first, SECOND).await.is_none(), "{url}");
        assert!(try_receive(&mut second, SECOND).await.is_none(), "{url}");
        broker.close().await.expect("a close");
        other.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_disturbs_nothing_that_is_in_hand() {
    for url in servers() {
        let proxy = Proxy::start(&url).await.expect("a proxy");
        let (broker, direct) = (connect(proxy.url()).await, connect(&url).await);
        let name = unique("cut");
        let subscription = Subscription::queue(Queue::new(name.clone()));
        let mut consumer = broker.consume(&subscription, 64).await.expect("a consumer");
        let mut seen = Vec::new();
        let mut held = Vec::new();
        for round in 0..5 {
            for number in 0..20 {
                send(&direct, Queue::new(name.clone()), message(format!("{round}.{number}"))).await;
            }
            for _ in 0..10 {
                held.push(receive(&mut consumer).await);
            }
            proxy.cut();
            for _ in 0..10 {
                held.push(receive(&mut consumer).await);
            }
            // Half of it is settled on the new connection, as it came by the former one.
            for delivery in held.drain(..10) {
                assert_eq!(delivery.attempt(), 1, "{url}: {delivery:?}");
                seen.push(delivery.envelope().id.clone());
                // The first may have been on its way when the connection was cut.
                if let Err(error) = delivery.settle(Outcome::Ack).await {
                    assert_eq!(error.retry_class(), RetryClass::Ambiguous, "{url}: {error:?}");
                }
            }
        }
        for delivery in held.drain(..) {
            assert_eq!(delivery.attempt(), 1, "{url}: {delivery:?}");
            seen.push(delivery.envelope().id.clone());
            ack(delivery).await;
        }
        assert!(try_receive(&mut consumer, SECOND).await.is_none(), "{url}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100, "{url}: each came once");
        broker.close().await.expect("a close");
        direct.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_group_comes_back_where_it_began() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("group");
        let topic = || Topic::new(name.clone());
        send(&broker, topic(), message("before")).await;
        let subscription = Subscription::topic(topic()).group("one");
        let mut consumer = broker.consume(&subscription, 4).await.expect("a consumer");
        send(&broker, topic(), message("first")).await;
        let held = receive(&mut consumer).await;
        let destroyed: u8 = run(&broker, cmd("XGROUP").arg("DESTROY").arg(&name).arg("one")).await;
        assert_eq!(destroyed, 1);
        let error = held.settle(Outcome::Ack).await.expect_err("the group is gone");
        assert_eq!(error.kind(), ErrorKind::StaleDelivery, "{url}: {error}");
        send(&broker, topic(), message("second")).await;
        // Not what was published before the group was made at first.
        assert_eq!(ack_all(&mut consumer, 2).await, ["first", "second"], "{url}");

        let deleted: u8 = run(&broker, cmd("DEL").arg(&name)).await;
        assert_eq!(deleted, 1);
        send(&broker, topic(), message("third")).await;
        assert_eq!(ack_all(&mut consumer, 1).await, ["third"], "{url}");
        assert!(try_receive(&mut consumer, SECOND).await.is_none(), "{url}");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_server_is_declared_again() {
    let server = tokio::task::spawn_blocking(|| {
        anybroker_testkit::brokers::Redis::new(anybroker_testkit::brokers::RedisVersion::V8)
            .launch()
    });
    let server = server.await.expect("no panic").expect("a server of its own");
    let broker = connect(server.url()).await;
    let queue = || Queue::new("flushed").ordered().partitions(3);
    let mut consumer = broker.consume(&Subscription::queue(queue()), 4).await.expect("a consumer");
    send(&broker, queue(), message("before")).await;
    assert_eq!(ack_all(&mut consumer, 1).await, ["before"]);
    let _: String = run(&broker, &cmd("FLUSHALL")).await;
    let _: String = run(&broker, cmd("SCRIPT").arg("FLUSH")).await;
    send(&broker, queue(), message("after")).await;
    assert_eq!(ack_all(&mut consumer, 1).await, ["after"]);
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_would_meet_when_joined_do_not() {
    let url = server();
    let base = unique("meet");
    let prefixed = connect(&format!("{url}?prefix={base}")).await;
    let plain = connect(&url).await;
    let mut consumers = Vec::new();
    for (broker, topic, group) in [
        (&prefixed, "a".to_owned(), "b"),
        (&plain, format!("{base}.a"), "b"),
        (&plain, format!("{base}-a"), "b"),
        (&plain, format!("{base}-a-b"), "b"),
        (&plain, base.clone(), "a-b"),
        (&plain, base.clone(), "a.b"),
    ] {
        let subscription = Subscription::topic(topic.clone()).group(group);
        let consumer = broker.consume(&subscription, 4).await.expect("a consumer");
        consumers.push((Arc::clone(broker), topic, subscription, consumer));
    }
    for index in 0..consumers.len() {
        let (broker, topic, subscription, consumer) = &mut consumers[index];
        send(broker, Topic::new(topic.clone()), message("m")).await;
        receive(consumer).await.settle(Outcome::dead_letter("test", "")).await.expect("settled");
        let shared = topic == &base;
        let subscription = subscription.clone();
        for (number, (broker, topic, other, consumer)) in consumers.iter_mut().enumerate() {
            if number != index && !(shared && *topic == base) {
                let none = try_receive(consumer, Duration::from_millis(100)).await;
                assert!(none.is_none(), "{other:?} got what was for {subscription:?}");
            }
            let dead = broker.depth(other).await.expect("a depth").dead_lettered;
            assert!(dead <= Some(1), "{other:?}: {dead:?}");
        }
        if shared {
            // The other group of the same topic has its own copy.
            for (_, topic, _, consumer) in &mut consumers {
                if *topic == base
                    && let Some(copy) = try_receive(consumer, Duration::from_millis(300)).await
                {
                    ack(copy).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_withheld_does_not_keep_an_ordered_consumer_from_closing() {
    for url in servers() {
        let broker = connect(&url).await;
        let queue = Queue::new(unique("withheld")).ordered();
        let subscription = Subscription::queue(queue.clone()).lease(2 * SECOND);
        for id in ["0", "1", "2", "3", "4"] {
            send(&broker, queue.clone(), message(id).with_key("k")).await;
        }
        let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
        drop(receive(&mut consumer).await);
        // Looks once for the next, which must not pass the first.
        drop(try_receive(&mut consumer, Duration::ZERO).await);
        let closed = tokio::time::timeout(2 * SECOND, consumer.close()).await;
        closed.expect("closed in time").expect("a close");
        let mut other = broker.consume(&subscription, 10).await.expect("a consumer");
        assert_eq!(ack_all(&mut other, 5).await, ["0", "1", "2", "3", "4"], "{url}");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_many_partitions_takes_no_more_than_its_prefetch() {
    let broker = connect(&server()).await;
    let topic = Topic::new(unique("wide")).partitions(8);
    let subscription = Subscription::topic(topic.clone()).group("all");
    broker.declare(&subscription).await.expect("a group");
    for number in 0..80 {
        let envelope = message(number.to_string()).with_key(number.to_string());
        send(&broker, topic.clone(), envelope).await;
    }
    let mut consumer = broker.consume(&subscription, 4).await.expect("a consumer");
    let first = receive(&mut consumer).await;
    until("the excess is given back", async || {
        let depth = broker.depth(&subscription).await.expect("a depth");
        depth.in_flight.is_some_and(|held| held <= 4)
    })
    .await;
    assert_eq!(first.attempt(), 1);
    ack(first).await;
    for _ in 1..80 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1, "what was given back was not delivered");
        ack(delivery).await;
    }
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_that_become_due_at_once_hold_nothing_up() {
    let broker = connect(&server()).await;
    let queue = Queue::new(unique("due"));
    let sent = (0..100).map(|number| {
        let mut envelope = message(number.to_string());
        envelope.payload = vec![b'x'; 400_000].into();
        let delayed = Outgoing::new(queue.clone(), envelope).with_delay(SECOND);
        broker.producer().send(delayed)
    });
    for confirmation in sent.collect::<Vec<_>>() {
        confirmation.await.expect("a confirmed publish");
    }
    let subscription = Subscription::queue(queue);
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let mut ids = ack_all(&mut consumer, 100).await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    broker.close().await.expect("a close");
}
