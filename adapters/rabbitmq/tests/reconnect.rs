//! Connections are cut, or fall silent, while messages are on their way; nothing confirmed is lost.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Envelope, ErrorKind, Outgoing, Queue, RetryClass, Subscription,
};
use anybroker_testkit::Proxy;
use support::{ack, connect, delete, receive, send, servers, try_receive, unique};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

async fn proxy(url: &str) -> Proxy {
    Proxy::start(url).await.expect("a proxy")
}

fn message(id: impl Into<String>) -> Envelope {
    Envelope::new("t", "x").with_id(id)
}

/// Acknowledges until one with this id comes; answers the ids before, sorted.
async fn ack_until(consumer: &mut Box<dyn Consumer>, last: &str) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let delivery = receive(consumer).await;
        let id = delivery.envelope().id.clone();
        ack(delivery).await;
        if id == last {
            ids.sort_unstable();
            return ids;
        }
        ids.push(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_when_connections_are_cut() {
    for (server, url) in servers() {
        // Of their own, so that messages get through while the answers to publishers do not.
        let (publishing, consuming) = (proxy(&url).await, proxy(&url).await);
        let (broker, other) = (connect(publishing.url()).await, connect(consuming.url()).await);
        let subscription = Subscription::topic(unique("cut")).group("one");
        broker.declare(&subscription).await.expect("a group");
        let mut consumer = other.consume(&subscription, 50).await.expect("a consumer");
        let (see, mut seen) = watch::channel(HashSet::new());
        let publisher = tokio::spawn({
            let (broker, topic) = (broker.clone(), subscription.destination().clone());
            async move {
                let (mut confirmed, mut unknown) = (HashSet::new(), HashSet::new());
                let producer = broker.producer();
                for burst in 0..150 {
                    let is_unanswered = burst % 50 == 49;
                    if is_unanswered {
                        publishing.swallow_answers();
                    }
                    let ids: Vec<_> =
                        (0..20).map(|number| format!("{}", burst * 20 + number)).collect();
                    let outgoing = |id| Outgoing::new(topic.clone(), message(id));
                    let sends: Vec<_> = ids.iter().map(|id| producer.send(outgoing(id))).collect();
                    let mut arrived = None;
                    if is_unanswered {
                        // Not all of them need to: some wait for the others' answers.
                        let any = |seen: &HashSet<_>| ids.iter().any(|id| seen.contains(id));
                        let any = timeout(PATIENCE, seen.wait_for(any)).await;
                        let seen = any.expect("one of them arrives").expect("a consumer");
                        arrived = ids.iter().find(|id| seen.contains(*id)).cloned();
                        publishing.cut();
                        publishing.pass();
                    } else if burst == 75 {
                        publishing.cut();
                    }
                    for (id, sent) in ids.into_iter().zip(sends) {
                        match sent.await {
                            Ok(()) => {
                                assert_ne!(arrived.as_ref(), Some(&id), "nothing said so");
                                confirmed.insert(id);
                            }
                            Err(error) if error.retry_class() == RetryClass::Ambiguous => {
                                unknown.insert(id);
                            }
                            Err(error) => panic!("{id} was not sent: {error:?}"),
                        }
                    }
                }
                (confirmed, unknown)
            }
        });
        let (mut handled, mut cuts): (u32, u32) = (0, 0);
        loop {
            let is_over = publisher.is_finished();
            let next = try_receive(&mut consumer, Duration::from_secs(3)).await;
            let Some(delivery) = next else {
                if is_over {
                    break;
                }
                continue;
            };
            see.send_modify(|seen| _ = seen.insert(delivery.envelope().id.clone()));
            // A settlement of the former connection is stale, and its message comes again.
            drop(delivery.settle(anybroker_core::Outcome::Ack));
            handled += 1;
            if handled.is_multiple_of(700) {
                consuming.cut();
                cuts += 1;
            }
        }
        let (confirmed, unknown) = publisher.await.expect("no panic");
        assert!(cuts > 2, "{server}: only {cuts} cuts");
        let seen = see.borrow();
        let lost: Vec<_> = confirmed.difference(&seen).collect();
        assert!(lost.is_empty(), "{server}: {} of {} lost", lost.len(), confirmed.len());
        assert_eq!(confirmed.len() + unknown.len(), 3000, "{server}");
        let count = unknown.len();
        assert!((3..300).contains(&count), "{server}: {count} without an answer");
        drop((consumer, seen));
        delete(&other, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_leave_it_open_and_no_message_is_stored_twice() {
    for (server, url) in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let subscription = Subscription::queue(unique("unanswered"));
        let queue = subscription.destination();
        let mut consumer = direct.consume(&subscription, 50).await.expect("a consumer");
        send(&broker, queue.clone(), message("first")).await;
        assert!(ack_until(&mut consumer, "first").await.is_empty());
        proxy.swallow_answers();
        let producer = broker.producer();
        let outgoing = |id: String| Outgoing::new(queue.clone(), message(id));
        let sends: Vec<_> = (0..20).map(|id| producer.send(outgoing(id.to_string()))).collect();
        // The others may wait for its answer.
        let arrived = receive(&mut consumer).await;
        proxy.cut();
        proxy.pass();
        let mut confirmed = Vec::new();
        for (number, sent) in sends.into_iter().enumerate() {
            match timeout(PATIENCE, sent).await.expect("soon") {
                Ok(()) => confirmed.push(number.to_string()),
                Err(error) => assert_eq!(error.retry_class(), RetryClass::Ambiguous, "{error:?}"),
            }
        }
        let id = arrived.envelope().id.clone();
        assert!(!confirmed.contains(&id), "{server}: nothing said that {id} is stored");
        ack(arrived).await;
        send(&broker, queue.clone(), message("last")).await;
        let mut stored = ack_until(&mut consumer, "last").await;
        stored.push(id);
        assert!(confirmed.iter().all(|id| stored.contains(id)), "{server}: {confirmed:?}");
        let count = stored.len();
        assert_eq!(stored.into_iter().collect::<HashSet<_>>().len(), count, "{server}");
        drop(consumer);
        delete(&direct, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_into_silence_end_in_time_and_say_what_is_known() {
    for (server, url) in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(&format!("{}?publish-timeout=2s", proxy.url())).await;
        let subscription = Subscription::queue(unique("silent"));
        let queue = subscription.destination();
        send(&broker, queue.clone(), message("first")).await;
        proxy.swallow();
        let (producer, begun) = (broker.producer(), Instant::now());
        let outgoing = |id: &str| Outgoing::new(queue.clone(), message(id));
        let sends: Vec<_> = (0..100).map(|id| producer.send(outgoing(&id.to_string()))).collect();
        let (mut open, mut unsent) = (0, HashSet::new());
        for (number, sent) in sends.into_iter().enumerate() {
            let error = timeout(PATIENCE, sent).await.expect("an end").expect_err("all is silent");
            match (error.kind(), error.retry_class()) {
                (ErrorKind::Timeout, RetryClass::Ambiguous) => open += 1,
                (ErrorKind::Timeout | ErrorKind::Unavailable, RetryClass::Transient) => {
                    unsent.insert(number.to_string());
                }
                _ => panic!("{server}: {error:?}"),
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{server}: {:?}", begun.elapsed());
        assert!(open > 0, "{server}: some were on their way");
        proxy.pass();
        let passing = Instant::now();
        while let Err(error) = producer.send(outgoing("after")).await {
            assert!(passing.elapsed() < PATIENCE, "{server}: it goes on: {error:?}");
        }
        send(&direct, queue.clone(), message("last")).await;
        let mut consumer = direct.consume(&subscription, 50).await.expect("a consumer");
        let mut stored = ack_until(&mut consumer, "last").await;
        assert!(stored.contains(&"after".to_owned()), "{server}: {stored:?}");
        stored.retain(|id| id != "after");
        let count = stored.len();
        let stored: HashSet<_> = stored.into_iter().collect();
        assert_eq!(stored.len(), count, "{server}: nothing is stored twice");
        assert!(stored.contains("first"), "{server}");
        assert!(stored.is_disjoint(&unsent), "{server}: what was not sent is not there");
        drop(consumer);
        delete(&direct, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_gets_what_came_while_its_connection_was_silent() {
    for (server, url) in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let subscription = Subscription::queue(unique("idle"));
        let queue = subscription.destination();
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        send(&direct, queue.clone(), message("first")).await;
        assert!(ack_until(&mut consumer, "first").await.is_empty());
        for is_cut in [false, true] {
            proxy.swallow();
            let mut expected = HashSet::new();
            for number in 0..3 {
                let id = format!("{is_cut}.{number}");
                send(&direct, queue.clone(), message(&id)).await;
                expected.insert(id);
            }
            let silence = try_receive(&mut consumer, Duration::from_secs(1)).await;
            assert!(silence.is_none(), "{server}: {silence:?}");
            if is_cut {
                proxy.cut();
            }
            proxy.pass();
            while !expected.is_empty() {
                let delivery = receive(&mut consumer).await;
                expected.remove(&delivery.envelope().id);
                ack(delivery).await;
            }
        }
        drop(consumer);
        delete(&direct, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_is_lost_brings_the_message_again() {
    for (server, url) in servers() {
        let proxy = proxy(&url).await;
        let broker = connect(proxy.url()).await;
        let subscription = Subscription::queue(unique("unacked"));
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        send(&broker, subscription.destination().clone(), message("m")).await;
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1, "{server}");
        proxy.swallow();
        // Written on a channel that is there, which is all that can be known.
        ack(delivery).await;
        proxy.cut();
        proxy.pass();
        let again = receive(&mut consumer).await;
        assert_eq!((&*again.envelope().id, again.attempt()), ("m", 2), "{server}");
        ack(again).await;
        assert!(try_receive(&mut consumer, Duration::from_secs(1)).await.is_none(), "{server}");
        drop(consumer);
        delete(&broker, &subscription).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_wait_waits_for_the_broker() {
    let (_, url) = servers().remove(0);
    let address = url.rsplit_once('@').expect("credentials").1.to_owned();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let port = free.expect("an address").port();
    let waiting = url.replace(&address, &format!("127.0.0.1:{port}?connect=wait"));
    let waiting = tokio::spawn(async move { connect(&waiting).await });
    let error = anybroker_rabbitmq::connect(support::parse(&format!("amqp://127.0.0.1:{port}")));
    assert!(error.await.is_err(), "nothing listens yet");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
    let proxy = Proxy::on(listener, &url).expect("a proxy");
    let broker = waiting.await.expect("a connection");
    broker.health().await.expect("it answers");
    drop(proxy);
}

/// Trying a host takes 10 s, and the second one answers: a publish that gives up before must not
/// begin with the first one again.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_says_nothing_delays_the_first_publishes_only() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = silent.local_addr().expect("an address");
    let (server, url) = servers().pop().expect("a server");
    let url = url.replacen('@', &format!("@{silent},"), 1);
    let broker = connect(&format!("{url}?publish-timeout=4s")).await;
    let (queue, end) = (Queue::new(unique("silent")), Instant::now() + PATIENCE);
    let publish = || broker.producer().send(Outgoing::new(queue.clone(), message("m")));
    while let Err(error) = publish().await {
        assert!(Instant::now() < end, "{server}: {error}");
    }
    broker.close().await.expect("it closes");
}
