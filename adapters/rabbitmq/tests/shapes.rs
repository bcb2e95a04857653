//! Publisher and worker must state one shape of a destination: otherwise what one of them publishes
//! is confirmed, and the other never reads it.

mod support;

use anybroker_core::{Broker, Envelope, Error, ErrorKind, Outgoing, Queue, Subscription, Topic};
use anybroker_rabbitmq::RabbitmqBroker;
use anybroker_rabbitmq::lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use support::{connect, delete, send, servers, unique};

fn message() -> Envelope {
    Envelope::new("t", "x").with_key("k")
}

fn is_mismatch(error: &Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
}

/// Neither publishes to it nor consumes it.
async fn is_refused(broker: &RabbitmqBroker, subscription: &Subscription, what: &str) {
    let destination = subscription.destination().clone();
    let sent = broker.producer().send(Outgoing::new(destination, message())).await;
    is_mismatch(&sent.expect_err("another shape is published to"), what);
    let consumer = broker.consume(subscription, 5).await;
    is_mismatch(&consumer.expect_err("another shape is handled"), what);
}

fn shapes(name: &str, is_topic: bool) -> Vec<Subscription> {
    let (queue, topic) = (Queue::new(name.to_owned()), Topic::new(name.to_owned()));
    if is_topic {
        let ordered = [2, 3].map(|count| topic.clone().ordered().partitions(count));
        let topics = [topic].into_iter().chain(ordered);
        return topics.map(|topic| Subscription::topic(topic).group("one")).collect();
    }
    let ordered = [1, 2, 3].map(|count| queue.clone().ordered().partitions(count));
    [queue].into_iter().chain(ordered).map(Subscription::queue).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_shape_is_a_mismatch_for_publishers_and_workers() {
    for (server, url) in servers() {
        for is_topic in [false, true] {
            let kinds = shapes("x", is_topic).len();
            for first in 0..kinds {
                let name = unique("shape");
                let all = shapes(&name, is_topic);
                let [broker, other] = [connect(&url).await, connect(&url).await];
                broker.declare(&all[first]).await.expect("nothing is there yet");
                for (number, shape) in all.iter().enumerate() {
                    let what = format!("{server}: {number} after {first}");
                    if number != first {
                        is_refused(&other, shape, &what).await;
                    }
                }
                send(&other, all[first].destination().clone(), message()).await;
                remove(&broker, &all[first]).await;
            }
        }
    }
}

/// What an earlier version has made, which stored no shape.
#[tokio::test(flavor = "multi_thread")]
async fn queues_tell_their_shape_where_none_is_stored() {
    for (server, url) in servers() {
        for first in [0, 2, 3] {
            let name = unique("old-shape");
            let all = shapes(&name, false);
            let [broker, other] = [connect(&url).await, connect(&url).await];
            broker.declare(&all[first]).await.expect("nothing is there yet");
            for (number, shape) in all.iter().enumerate() {
                delete_shape(&broker, &name).await;
                let what = format!("{server}: {number} after {first}");
                if number != first {
                    is_refused(&other, shape, &what).await;
                }
            }
            send(&other, all[first].destination().clone(), message()).await;
            remove(&broker, &all[first]).await;
        }
    }
}

async fn delete_shape(broker: &RabbitmqBroker, name: &str) {
    let channel = broker.channel().await.expect("a channel");
    let shape = format!("{name}--shape");
    let deleted = channel.exchange_delete(shape.as_str().into(), ExchangeDeleteOptions::default());
    deleted.await.expect("it is deleted");
}

async fn remove(broker: &RabbitmqBroker, subscription: &Subscription) {
    let channel = broker.channel().await.expect("a channel");
    for number in 0..3 {
        let queue = format!("{}--p{number}", subscription.destination().name());
        let _ = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
    }
    delete(broker, subscription).await;
}
