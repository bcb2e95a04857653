//! What goes wrong between a service and its server, on servers of the test's own.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, Envelope, Error, ErrorKind, Outcome, Outgoing, Queue, RetryClass, Subscription,
};
use anybroker_rabbitmq::RabbitmqBroker;
use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion, Server};
use support::{connect, parse, receive};
use tokio::time::{Instant, timeout};

const VERSIONS: [RabbitMqVersion; 2] = [RabbitMqVersion::V3_10, RabbitMqVersion::V4_3];

/// Starting a server waits on processes.
async fn launch(setup: RabbitMq) -> Server {
    tokio::task::spawn_blocking(move || setup.launch()).await.unwrap().unwrap()
}

async fn refusal(url: &str) -> Error {
    let refused = anybroker_rabbitmq::connect(parse(url));
    timeout(Duration::from_secs(20), refused).await.expect("an answer").expect_err("a refusal")
}

async fn publish(broker: &RabbitmqBroker, queue: &str) -> Result<(), Error> {
    // One key, so that all take the same way to the server.
    let envelope = Envelope::new("fault.message", "{}").with_key("k");
    broker.producer().send(Outgoing::new(Queue::new(queue.to_owned()), envelope)).await
}

async fn ready(broker: &RabbitmqBroker, queue: &str) -> u64 {
    let subscription = Subscription::queue(Queue::new(queue.to_owned()));
    broker.depth(&subscription).await.unwrap().ready.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_a_publish_is_denied() {
    for version in VERSIONS {
        let server = launch(RabbitMq::new(version)).await;
        let guest = connect(server.url()).await;
        publish(&guest, "jobs").await.unwrap();
        for right in [
            &["rabbitmqctl", "add_user", "reader", "s3cret"][..],
            &["rabbitmqctl", "set_permissions", "reader", ".*", r"^(?!amq\.default$).*", ".*"],
        ] {
            server.exec(right).unwrap();
        }
        let reader = connect(&server.url().replace("guest:guest", "reader:s3cret")).await;
        let denied = |error: Error| {
            let found = (error.kind(), error.retry_class());
            assert_eq!(found, (ErrorKind::Denied, RetryClass::Permanent), "{error}");
            let text = error.to_string();
            assert!(text.contains("'amq.default'") && text.contains("permissions"), "{text}");
        };
        denied(publish(&reader, "jobs").await.expect_err("a refusal"));
        // A dead letter is a publish too.
        let mut consumer = reader.consume(&Subscription::queue("jobs"), 1).await.unwrap();
        let delivery = receive(&mut consumer).await;
        let given_up = delivery.settle(Outcome::dead_letter("odd", "")).await;
        denied(given_up.expect_err("a refusal"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_url_says_what_is_wrong_and_no_secret() {
    for version in VERSIONS {
        let server = launch(RabbitMq::new(version).user("app", "s3cret").tls()).await;
        let good = server.url().to_owned();
        let tls = server.tls().expect("it was asked for");

        let error = refusal(&good.replace("s3cret", "wr0ng")).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert_eq!(error.retry_class(), RetryClass::Permanent, "{error:?}");
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");

        let error = refusal(&format!("{good}/no-such-vhost")).await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert!(error.to_string().contains("no-such-vhost"), "{error}");

        let error = refusal("amqp://app:s3cret@127.0.0.1:1").await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");

        // Each protocol at the other one's port.
        let swapped = tls.url.replace("amqps://", "amqp://");
        for url in [swapped, good.replace("amqp://", "amqps://")] {
            let error = refusal(&url).await;
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::Config), "{error:?}");
            assert!(error.to_string().contains("amqp"), "it says what was tried: {error}");
        }

        let error = refusal(&format!("{good}?prefix=dev&prefetch=3")).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("prefetch"), "{error}");

        // Signed by nobody whom the system trusts, until the URL names who did. The server may hang
        // up before the client's complaint is read back.
        let kind = refusal(&tls.url).await.kind();
        assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::Config), "{kind:?}");
        let trusted = connect(&format!("{}?ca={}", tls.url, tls.authority.display())).await;
        publish(&trusted, "by-tls").await.unwrap();
        trusted.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_out_of_memory_holds_publishers_until_their_deadline_and_loses_nothing() {
    for version in VERSIONS {
        let server = launch(RabbitMq::new(version)).await;
        let broker = connect(&format!("{}?publish-timeout=2s", server.url())).await;
        publish(&broker, "held").await.unwrap();
        let set = |limit: &'static str| {
            let server = &server;
            move || server.exec(&["rabbitmqctl", "set_vm_memory_high_watermark", limit]).unwrap()
        };
        tokio::task::block_in_place(set("0.00001"));
        let started = Instant::now();
        let error = loop {
            // The alarm takes a moment; what gets through before is confirmed.
            match publish(&broker, "held").await {
                Ok(()) => assert!(started.elapsed() < Duration::from_secs(30), "no alarm"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Blocked, "{error:?}");
        let asked = Instant::now();
        assert!(publish(&broker, "held").await.is_err());
        assert!(asked.elapsed() < Duration::from_secs(5), "it ends by its deadline");

        tokio::task::block_in_place(set("0.6"));
        let started = Instant::now();
        while let Err(error) = publish(&broker, "held").await {
            assert!(started.elapsed() < Duration::from_secs(30), "{error:?}");
        }
        assert!(ready(&broker, "held").await >= 2, "what was confirmed is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_server_closes_lose_nothing_confirmed() {
    for version in VERSIONS {
        let server = launch(RabbitMq::new(version)).await;
        let broker: Arc<RabbitmqBroker> = connect(server.url()).await;
        publish(&broker, "cut").await.unwrap();
        let publisher = tokio::spawn({
            let broker = Arc::clone(&broker);
            async move {
                let mut confirmed = 1;
                for _ in 0..2_000 {
                    match publish(&broker, "cut").await {
                        Ok(()) => confirmed += 1,
                        Err(error) => assert_ne!(
                            error.retry_class(),
                            RetryClass::Permanent,
                            "a lost connection is nobody's fault: {error:?}"
                        ),
                    }
                }
                confirmed
            }
        });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            tokio::task::block_in_place(|| {
                server.exec(&["rabbitmqctl", "close_all_connections", "a test"]).unwrap()
            });
        }
        let confirmed = timeout(Duration::from_mins(2), publisher).await.expect("it ends").unwrap();
        let stored = ready(&broker, "cut").await;
        assert!(stored >= confirmed, "{confirmed} confirmed, {stored} stored");
        assert!(confirmed > 1_000, "it goes on after each: {confirmed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_ends_a_publish_by_its_deadline_as_ambiguous() {
    let server = launch(RabbitMq::new(RabbitMqVersion::V4_3)).await;
    let broker = connect(&format!("{}?publish-timeout=2s", server.url())).await;
    publish(&broker, "silent").await.unwrap();
    server.pause().unwrap();
    let asked = Instant::now();
    let error = publish(&broker, "silent").await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Timeout, RetryClass::Ambiguous));
    server.resume().unwrap();
    let resumed = Instant::now();
    while publish(&broker, "silent").await.is_err() {
        assert!(resumed.elapsed() < Duration::from_mins(1), "it goes on");
    }
}
