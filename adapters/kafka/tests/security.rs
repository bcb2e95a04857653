//! Users and TLS, on a server of their own.

mod support;

use std::sync::Arc;

use anybroker_core::{
    Broker, BrokerUrl, Envelope, ErrorKind, Outcome, Reason, Redrive, Result, Subscription,
};
use anybroker_kafka::rdkafka::client::OAuthToken;
use anybroker_kafka::{KafkaBroker, KafkaBuilder};
use anybroker_testkit::brokers::Kafka;
use support::{ack, receive, send, unique};

fn builder(url: &str, options: &str) -> KafkaBuilder {
    let url: BrokerUrl = format!("{url}?{options}").parse().expect("a URL");
    KafkaBroker::builder().url(url).expect("known options").partitions(1)
}

async fn works(connected: Result<Arc<KafkaBroker>>) {
    let broker = connected.expect("a connection");
    works_on(&broker, &Subscription::queue(unique("secured"))).await;
    broker.close().await.expect("a closed broker");
}

async fn works_on(broker: &Arc<KafkaBroker>, subscription: &Subscription) {
    send(broker, subscription.destination().clone(), Envelope::new("t", "{}")).await;
    let mut consumer = broker.consume(subscription, 1).await.expect("a consumer");
    let delivery = receive(&mut consumer).await;
    let reason = Reason::new("checked", "");
    delivery.settle(Outcome::DeadLetter { reason }).await.expect("a dead letter");
    assert_eq!(broker.redrive(subscription, &Redrive::all()).await.expect("a redrive"), 1);
    ack(receive(&mut consumer).await).await;
    assert_eq!(broker.depth(subscription).await.expect("a depth").dead_lettered, Some(0));
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
    // Its header says that nobody signed it, its payload that it is the app's, and until when.
    let token = |payload: &str| OAuthToken {
        token: format!("eyJhbGciOiJub25lIn0.{payload}."),
        principal_name: "app".to_owned(),
        lifetime_ms: 4_102_444_800_000,
    };
    let until_2100 = "eyJzdWIiOiJhcHAiLCJpYXQiOjE3MDAwMDAwMDAsImV4cCI6NDEwMjQ0NDgwMH0";
    let by_token = || builder(server.url(), "").oauth_token(move || Ok(token(until_2100)));
    let broker = by_token().connect().await.expect("a connection");
    let subscription = Subscription::queue(unique("secured"));
    let error = broker.declare(&subscription).await.expect_err("a topic to create");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let other = builder(server.url(), "").connect().await.expect("a connection");
    other.declare(&subscription).await.expect("topics");
    works_on(&broker, &subscription).await;
    broker.close().await.expect("a closed broker");
    let until_2023 = "eyJzdWIiOiJhcHAiLCJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMzYwMH0";
    let by_token = builder(server.url(), "").oauth_token(move || Ok(token(until_2023)));
    let error = by_token.connect().await.expect_err("a token that the broker does not take");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let by_token = builder(server.url(), "").oauth_token(|| Err("the issuer is down".into()));
    let error = by_token.connect().await.expect_err("no token");
    assert!(format!("{error:?}").contains("the issuer is down"), "{error:?}");
    // An authority that nobody here knows.
    let error = builder(&tls.url, "").connect().await.expect_err("an unknown authority");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("certificates"), "{error}");
}
