//! Users and TLS, on a server of their own.

mod support;

use std::sync::Arc;

use anybroker_core::{Broker, BrokerUrl, Envelope, ErrorKind, Result, Subscription};
use anybroker_kafka::{KafkaBroker, KafkaBuilder};
use anybroker_testkit::brokers::Kafka;
use support::{ack, receive, send, unique};

fn builder(url: &str, options: &str) -> KafkaBuilder {
    let url: BrokerUrl = format!("{url}?{options}").parse().expect("a URL");
    KafkaBroker::builder().url(url).expect("known options").partitions(1)
}

async fn works(connected: Result<Arc<KafkaBroker>>) {
    let broker = connected.expect("a connection");
    let subscription = Subscription::queue(unique("secured"));
    send(&broker, subscription.destination().clone(), Envelope::new("t", "{}")).await;
    let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
    ack(receive(&mut consumer).await).await;
    broker.close().await.expect("a closed broker");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_log_in_by_each_mechanism_with_tls_and_without() {
    let server =
        tokio::task::spawn_blocking(|| Kafka::new().user("app", "opensesame").tls().launch());
    let server = server.await.expect("no panic").expect("a server");
    let tls = server.tls().expect("a TLS listener");
    for sasl in ["plain", "scram-sha-256", "scram-sha-512"] {
        works(builder(server.url(), &format!("sasl={sasl}")).connect().await).await;
        let secured = builder(&tls.url, &format!("sasl={sasl}")).ca(&tls.authority);
        works(secured.connect().await).await;
    }
    for sasl in ["plain", "scram-sha-512"] {
        let wrong = builder(server.url(), &format!("sasl={sasl}")).credentials("app", "wrongly");
        let error = wrong.connect().await.expect_err("a wrong password");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let text = error.to_string();
        assert!(text.contains("check user, password") && !text.contains("wrongly"), "{text}");
    }
    // An authority that nobody here knows.
    let error = builder(&tls.url, "").connect().await.expect_err("an unknown authority");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("certificates"), "{error}");
}
