//! Connections are cut while messages are on their way; nothing confirmed is lost.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use anybroker_core::{Broker, Envelope, Outgoing, RetryClass, Subscription};
use support::{Proxy, connect, delete, servers, try_receive, unique};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_confirmed_is_lost_when_connections_are_cut() {
    for (server, url) in servers() {
        let address = url.rsplit_once('@').expect("credentials").1.to_owned();
        let proxy = Proxy::start(0, address.clone()).await;
        let through = url.replace(&address, &proxy.address());
        let broker = connect(&through).await;
        let subscription = Subscription::topic(unique("cut")).group("one");
        broker.declare(&subscription).await.expect("a group");
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        let publisher = tokio::spawn({
            let (broker, topic) = (broker.clone(), subscription.destination().clone());
            async move {
                let (mut confirmed, mut unknown) = (HashSet::new(), HashSet::new());
                let producer = broker.producer();
                for burst in 0..150 {
                    let sends: Vec<_> = (0..20)
                        .map(|number| {
                            let id = format!("{}", burst * 20 + number);
                            let envelope = Envelope::new("t", "x").with_id(id.clone());
                            (id, producer.send(Outgoing::new(topic.clone(), envelope)))
                        })
                        .collect();
                    for (id, sent) in sends {
                        match sent.await {
                            Ok(()) => _ = confirmed.insert(id),
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
        let mut seen = HashSet::new();
        let mut handled: u32 = 0;
        loop {
            let is_over = publisher.is_finished();
            let next = try_receive(&mut consumer, Duration::from_secs(3)).await;
            let Some(delivery) = next else {
                if is_over {
                    break;
                }
                continue;
            };
            seen.insert(delivery.envelope().id.clone());
            // A settlement of the former connection is stale, and its message comes again.
            drop(delivery.settle(anybroker_core::Outcome::Ack));
            handled += 1;
            if handled.is_multiple_of(700) {
                proxy.cut();
            }
        }
        let (confirmed, unknown) = publisher.await.expect("no panic");
        assert!(proxy.cuts() > 2, "{server}: only {} cuts", proxy.cuts());
        let lost: Vec<_> = confirmed.difference(&seen).collect();
        assert!(lost.is_empty(), "{server}: {} of {} lost", lost.len(), confirmed.len());
        assert_eq!(confirmed.len() + unknown.len(), 3000, "{server}");
        assert!(unknown.len() < 300, "{server}: {} without an answer", unknown.len());
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
    let proxy = Proxy::start(port, address).await;
    let broker = waiting.await.expect("a connection");
    broker.health().await.expect("it answers");
    drop(proxy);
}
