//! The way to the server falls silent, or is cut while answers are on it.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, ErrorKind, Outcome, Outgoing, Queue, RetryClass, Subscription,
};
use anybroker_testkit::Proxy;
use support::{ack, connect, message, receive, send, servers, try_receive, unique};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

async fn proxy(url: &str) -> Proxy {
    Proxy::start(url).await.expect("a proxy")
}

/// Acknowledges until one with this id comes; answers the ids before it.
async fn ack_until(consumer: &mut Box<dyn Consumer>, last: &str) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let delivery = receive(consumer).await;
        let id = delivery.envelope().id.clone();
        ack(delivery).await;
        if id == last {
            return ids;
        }
        ids.push(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_into_silence_end_in_time_and_say_what_is_known() {
    for url in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(&format!("{}?publish-timeout=2s", proxy.url())).await;
        let queue = Queue::new(unique("silent"));
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
                _ => panic!("{url}: {error:?}"),
            }
        }
        assert!(begun.elapsed() < 4 * SECOND, "{url}: {:?}", begun.elapsed());
        assert!(open > 0, "{url}: some were on their way");
        proxy.pass();
        let passing = Instant::now();
        while let Err(error) = producer.send(outgoing("after")).await {
            assert!(passing.elapsed() < PATIENCE, "{url}: it goes on: {error:?}");
        }
        send(&direct, queue.clone(), message("last")).await;
        let subscription = Subscription::queue(queue.clone());
        let mut consumer = direct.consume(&subscription, 50).await.expect("a consumer");
        let mut stored = ack_until(&mut consumer, "last").await;
        assert!(stored.contains(&"after".to_owned()), "{url}: {stored:?}");
        stored.retain(|id| id != "after");
        let count = stored.len();
        let stored: HashSet<_> = stored.into_iter().collect();
        assert_eq!(stored.len(), count, "{url}: nothing is stored twice");
        assert!(stored.contains("first"), "{url}");
        assert!(stored.is_disjoint(&unsent), "{url}: what was not sent is not there");
        direct.close().await.expect("a close");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_leave_it_open_and_no_message_is_stored_twice() {
    for url in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let queue = Queue::new(unique("unanswered"));
        let subscription = Subscription::queue(queue.clone());
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
        assert!(!confirmed.contains(&id), "{url}: nothing said that {id} is stored");
        ack(arrived).await;
        send(&broker, queue.clone(), message("last")).await;
        let mut stored = ack_until(&mut consumer, "last").await;
        stored.push(id);
        assert!(confirmed.iter().all(|id| stored.contains(id)), "{url}: {confirmed:?}");
        let count = stored.len();
        assert_eq!(stored.into_iter().collect::<HashSet<_>>().len(), count, "{url}");
        direct.close().await.expect("a close");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_gets_what_came_while_its_connection_was_silent() {
    for url in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let queue = Queue::new(unique("idle"));
        let subscription = Subscription::queue(queue.clone());
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
            let silence = try_receive(&mut consumer, SECOND).await;
            assert!(silence.is_none(), "{url}: {silence:?}");
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
        direct.close().await.expect("a close");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_is_lost_brings_the_message_again() {
    for url in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let queue = Queue::new(unique("unacked"));
        let subscription = Subscription::queue(queue.clone()).lease(SECOND);
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        send(&broker, queue.clone(), message("m")).await;
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1, "{url}");
        proxy.swallow();
        let settled = delivery.settle(Outcome::Ack);
        let mut other = direct.consume(&subscription, 50).await.expect("a consumer");
        let again = receive(&mut other).await;
        assert_eq!((&*again.envelope().id, again.attempt()), ("m", 2), "{url}");
        proxy.cut();
        proxy.pass();
        let error = timeout(PATIENCE, settled).await.expect("soon").expect_err("it is another's");
        let (kind, class) = (error.kind(), error.retry_class());
        let expected = kind == ErrorKind::StaleDelivery || class == RetryClass::Ambiguous;
        assert!(expected, "{url}: {error:?}");
        ack(again).await;
        assert!(try_receive(&mut other, SECOND).await.is_none(), "{url}");
        direct.close().await.expect("a close");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_whose_answer_is_lost_is_given_again() {
    for url in servers() {
        let (proxy, direct) = (proxy(&url).await, connect(&url).await);
        let broker = connect(proxy.url()).await;
        let queue = Queue::new(unique("acked"));
        let subscription = Subscription::queue(queue.clone()).lease(SECOND);
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        send(&broker, queue.clone(), message("m")).await;
        let delivery = receive(&mut consumer).await;
        proxy.swallow_answers();
        let settled = delivery.settle(Outcome::Ack);
        let end = Instant::now() + PATIENCE;
        while direct.depth(&subscription).await.expect("a depth").in_flight != Some(0) {
            assert!(Instant::now() < end, "{url}: it arrives");
        }
        proxy.cut();
        proxy.pass();
        let settled = timeout(PATIENCE, settled).await.expect("soon");
        // It is known to be gone, not who has acknowledged it.
        if let Err(error) = settled {
            assert_ne!(error.retry_class(), RetryClass::Permanent, "{url}: {error:?}");
        }
        assert!(
            try_receive(&mut consumer, 2 * SECOND).await.is_none(),
            "{url}: it is acknowledged"
        );
        direct.close().await.expect("a close");
        broker.close().await.expect("a close");
    }
}
