//! The server is gone for longer than a publish may take, another one takes its place, or the
//! application closes at once.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{Broker, BrokerUrl, Queue, Subscription, Topic};
use anybroker_core::{Destination, Outgoing};
use anybroker_redis::redis::cmd;
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{Redis, RedisVersion, Server};
use support::{ack_all, connect, message, run, send, servers, unique};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const VERSIONS: [RedisVersion; 3] = [RedisVersion::V7_0, RedisVersion::V8, RedisVersion::Valkey9];
const SECOND: Duration = Duration::from_secs(1);

async fn launch(version: RedisVersion) -> Server {
    let launched = tokio::task::spawn_blocking(move || Redis::new(version).launch());
    launched.await.expect("no panic").expect("a server of its own")
}

async fn comes_back(version: RedisVersion) {
    let mut server = launch(version).await;
    let broker = connect(&format!("{}?publish-timeout=1s", server.url())).await;
    let queue = Queue::new("steady");
    send(&broker, queue.clone(), message("first")).await;
    let confirmed = Arc::new(Mutex::new(None));
    let traffic = tokio::spawn({
        let (producer, confirmed) = (broker.producer(), Arc::clone(&confirmed));
        async move {
            let mut sends = JoinSet::new();
            for number in 0_u32.. {
                let sent = producer.send(Outgoing::new(queue.clone(), message(number.to_string())));
                let confirmed = Arc::clone(&confirmed);
                sends.spawn(async move {
                    if sent.await.is_ok() {
                        *confirmed.lock().expect("no panic") = Some(Instant::now());
                    }
                });
                while sends.try_join_next().is_some() {}
                sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let mut server = tokio::task::spawn_blocking(move || {
        server.kill().expect("a server of its own");
        server
    })
    .await
    .expect("no panic");
    // Until the pauses between attempts are longer than a publish may take.
    sleep(12 * SECOND).await;
    let server = tokio::task::spawn_blocking(move || {
        server.restart().expect("it comes back");
        server
    })
    .await
    .expect("no panic");
    let back = Instant::now();
    while confirmed.lock().expect("no panic").is_none_or(|last| last < back) {
        assert!(back.elapsed() < 40 * SECOND, "{version:?}: it never comes back");
        sleep(Duration::from_millis(50)).await;
    }
    traffic.abort();
    broker.close().await.expect("a close");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_with_steady_traffic_comes_back_after_an_outage_longer_than_its_timeout() {
    let mut tests: JoinSet<_> = VERSIONS.into_iter().map(comes_back).collect();
    while let Some(test) = tests.join_next().await {
        test.expect("it comes back");
    }
}

fn address(server: &Server) -> (String, String) {
    let address = server.url().trim_start_matches("redis://");
    let (host, port) = address.split_once(':').expect("a host and a port");
    (host.to_owned(), port.to_owned())
}

async fn fails_over(version: RedisVersion, idle: bool) {
    let (former, latter) = tokio::join!(launch(version), launch(version));
    let ((host, port), (other_host, other_port)) = (address(&former), address(&latter));
    let (first, second) = (connect(former.url()).await, connect(latter.url()).await);
    let _: String = run(&second, cmd("REPLICAOF").arg(&host).arg(&port)).await;
    let broker = connect(&format!("redis://{host}:{port},{other_host}:{other_port}")).await;
    let queue = Queue::new("failed-over");
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    send(&broker, queue.clone(), message("before")).await;
    assert_eq!(ack_all(&mut consumer, 1).await, ["before"]);
    let in_step = Instant::now();
    while run::<usize>(&second, cmd("XLEN").arg("failed-over")).await == 0 {
        assert!(in_step.elapsed() < 30 * SECOND, "{version:?}: the replica stays behind");
        sleep(Duration::from_millis(50)).await;
    }
    let _: String = run(&second, cmd("REPLICAOF").arg("NO").arg("ONE")).await;
    let _: String = run(&first, cmd("REPLICAOF").arg(&other_host).arg(&other_port)).await;
    if idle {
        // So that the connection is tried before it is used.
        sleep(2 * SECOND).await;
        broker.health().await.expect("the other one is well");
    }
    let sends: Vec<_> = (0..20)
        .map(|id| broker.producer().send(Outgoing::new(queue.clone(), message(id.to_string()))))
        .collect();
    let sent: Vec<_> = (0..20).map(|id: u32| id.to_string()).collect();
    for send in sends {
        send.await.expect("it goes to the other server");
    }
    assert_eq!(ack_all(&mut consumer, 20).await, sent, "{version:?}, {idle}");
    assert_eq!(run::<usize>(&second, cmd("XLEN").arg("failed-over")).await, 21);
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_publish_fails_since_its_server_became_a_replica() {
    for version in VERSIONS {
        fails_over(version, true).await;
        fails_over(version, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_at_once_flushes_all_that_was_accepted() {
    for url in servers() {
        let other = connect(&url).await;
        for _ in 0..3 {
            let broker = connect(&url).await;
            let (queue, topic) = (unique("flushed"), unique("flushed"));
            let destinations: [Destination; 2] =
                [Queue::new(queue.clone()).into(), Topic::new(topic.clone()).into()];
            let producer = broker.producer();
            let sends: Vec<_> = (0..1000)
                .map(|number| {
                    let to = destinations[number % 2].clone();
                    producer.send(Outgoing::new(to, message(number.to_string())))
                })
                .collect();
            broker.close().await.expect("a close");
            for sent in sends {
                sent.await.expect("it was accepted, so that it is stored");
            }
            for name in [queue, topic] {
                assert_eq!(run::<usize>(&other, cmd("XLEN").arg(name)).await, 500, "{url}");
            }
        }
        other.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_broker_outlasts_any_cut() {
    for server in servers() {
        let proxy = Proxy::start(&server).await.expect("a proxy");
        proxy.slow(Duration::from_millis(10));
        let url: BrokerUrl = format!("{}?connect=wait", proxy.url()).parse().expect("a URL");
        let mut connects = JoinSet::new();
        for _ in 0..10 {
            let url = url.clone();
            connects.spawn(async move { anybroker_redis::connect(url).await.map(drop) });
        }
        for _ in 0..20 {
            sleep(Duration::from_millis(70)).await;
            proxy.cut();
        }
        while let Some(connected) = connects.join_next().await {
            connected.expect("no panic").expect("a connection at last");
        }
    }
}
