//! What is wrong says so, and what to write instead.

mod support;

use std::time::{Duration, Instant};

use anybroker_core::{
    Broker, BrokerUrl, Declare, Envelope, ErrorKind, Outgoing, Queue, RetryClass, Subscription,
    Topic,
};
use anybroker_kafka::KafkaBroker;
use anybroker_testkit::brokers::Kafka;
use bytes::Bytes;
use support::{builder, connect, server, unique};

const TIMEOUT: Duration = Duration::from_mins(1);

async fn refusal(url: &str) -> (ErrorKind, String) {
    let refused = match url.parse::<BrokerUrl>() {
        Ok(url) => anybroker_kafka::connect(url).await.map(drop),
        Err(error) => Err(error),
    };
    let error = refused.expect_err(url);
    assert!(!error.to_string().contains("secret"), "{error}");
    (error.kind(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_url_says_what_to_write() {
    let server = server();
    for (url, kind, hint) in [
        ("kafka://127.0.0.1:1".to_owned(), ErrorKind::Unavailable, "check host and port"),
        ("kafka://no-such-host.invalid".to_owned(), ErrorKind::Unavailable, "check host and port"),
        ("kafka://".to_owned(), ErrorKind::Config, "kafka://host:9092"),
        (format!("{server}/database"), ErrorKind::Config, "drop \"database\""),
        (format!("{server}?partition=4"), ErrorKind::Config, "did you mean \"partitions\"?"),
        (format!("{server}?partitions=0"), ErrorKind::Config, "a number from 1"),
        (format!("{server}?partitions=many"), ErrorKind::Config, "a number from 1"),
        (
            format!("{server}?sasl=kerberos"),
            ErrorKind::Config,
            "plain, scram-sha-256 or scram-sha-512",
        ),
        (format!("{server}?group-protocol=new"), ErrorKind::Config, "classic or consumer"),
        (format!("{server}?connect=twice"), ErrorKind::Config, "once or wait"),
        (format!("{server}?session-timeout=6"), ErrorKind::Config, "30s"),
        (format!("{server}?cert=/tmp/x"), ErrorKind::Config, "write both"),
        (format!("{server}?prefix=a_b"), ErrorKind::Invalid, "letters, digits"),
    ] {
        let began = Instant::now();
        let (found, text) = refusal(&url).await;
        assert_eq!(found, kind, "{url}: {text}");
        assert!(text.contains(hint), "{url}: {text}");
        assert!(began.elapsed() < Duration::from_secs(12), "{url} took {:?}", began.elapsed());
    }
    let amqp: BrokerUrl = "amqp://localhost".parse().expect("a URL");
    let error = KafkaBroker::builder().url(amqp).expect_err("another broker's URL");
    assert!(error.to_string().contains("write kafka:// or kafka+ssl://"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_url_at_a_plain_port_says_so() {
    let (kind, text) = refusal(&server().replacen("kafka://", "kafka+ssl://", 1)).await;
    assert!(matches!(kind, ErrorKind::Config | ErrorKind::Unavailable), "{kind:?}");
    assert!(text.contains("TLS"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_shows_both() {
    let broker = connect().await;
    let name = unique("shape");
    broker.declare_destination(&Topic::new(name.clone()).into()).await.expect("a topic");
    let other = connect().await;
    for asked in [Topic::new(name.clone()).partitions(7), Topic::new(name.clone()).ordered()] {
        let error = other.declare_destination(&asked.into()).await.expect_err("another shape");
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.to_string().contains("has 4 partitions"), "{error}");
    }
    other.declare_destination(&Topic::new(name).partitions(4).into()).await.expect("the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_brokers_are_refused() {
    let broker = builder().replication(3).connect().await.expect("a connection");
    let queue = Queue::new(unique("copies"));
    let error = broker.declare_destination(&queue.into()).await.expect_err("there is one broker");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("replication"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_broker_does_not_take_is_an_error() {
    let broker = builder().session_timeout(Duration::from_secs(1)).connect().await;
    let broker = broker.expect("a connection");
    let subscription = Subscription::queue(unique("session"));
    let mut consumer = broker.consume(&subscription, 1).await.expect("a consumer");
    match support::next(&mut consumer, Duration::from_secs(20)).await {
        Some(Err(error)) => {
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("session-timeout"), "{error}");
        }
        other => panic!("an error was expected, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_less_than_is_sent_is_refused() {
    const LARGE: usize = 4 * 1024 * 1024;
    let envelope = || Envelope::new("large", vec![b'x'; LARGE / 2]);
    // The server gives it its own limit, which is 1 MiB.
    let queue = Queue::new(unique("smaller"));
    let broker = connect().await;
    broker.declare_destination(&queue.clone().into()).await.expect("a topic");
    let larger = builder().max_payload(LARGE).connect().await.expect("a connection");
    let sent = larger.producer().send(Outgoing::new(queue.clone(), envelope())).await;
    let error = sent.expect_err("it takes less");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    let text = error.to_string();
    assert!(text.contains("max-payload=1048588") && text.contains("4194304"), "{text}");
    // Nobody looks, so that the server has to say it.
    let blind = builder().max_payload(LARGE).declare(Declare::Off).connect().await;
    let blind = blind.expect("a connection").producer();
    let error = blind.send(Outgoing::new(queue, envelope())).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
    // One that is created takes what is sent.
    let created = Outgoing::new(Queue::new(unique("large")), envelope());
    larger.producer().send(created).await.expect("stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_shows_the_password() {
    let url = "kafka+ssl://app:secret@127.0.0.1:1?sasl=scram-sha-256";
    let (_, text) = refusal(url).await;
    let builder = KafkaBroker::builder().url(url.parse().expect("a URL")).expect("options");
    assert!(!format!("{text} {builder:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_fails_for_good_is_replaced() {
    use anybroker_kafka::rdkafka::mocking::MockCluster;
    use anybroker_kafka::rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    let cluster = MockCluster::new(1).expect("a cluster");
    cluster.create_topic("numbers", 1, 1).expect("a topic");
    let url = format!("kafka://{}?declare=off", cluster.bootstrap_servers());
    let url: BrokerUrl = url.parse().expect("a URL");
    let broker = anybroker_kafka::connect(url).await.expect("a connection");
    let send = || {
        broker.producer().send(Outgoing::new(Topic::native("numbers"), Envelope::new("t", "{}")))
    };
    send().await.expect("a confirmed publish");
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
    );
    let error = send().await.expect_err("its producer has failed");
    assert_eq!(error.retry_class(), RetryClass::Ambiguous, "{error}");
    send().await.expect("another producer has taken over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_to_a_broker_that_takes_nothing_is_refused_before_memory_is_full() {
    let started = tokio::task::spawn_blocking(|| Kafka::new().launch()).await;
    let server = started.expect("no panic").expect("a server of its own");
    let url: BrokerUrl = server.url().parse().expect("a URL");
    let broker = KafkaBroker::builder().url(url).expect("options").publish_timeout(TIMEOUT);
    let broker = broker.connect().await.expect("a connection");
    let (producer, queue) = (broker.producer(), Queue::new("flood"));
    let payload = Bytes::from(vec![b'x'; 900_000]);
    let send = || producer.send(Outgoing::new(queue.clone(), Envelope::new("t", payload.clone())));
    send().await.expect("a confirmed publish");

    server.pause().expect("it stops");
    let sends: Vec<_> = (0..700).map(|_| send()).collect();
    server.resume().expect("it goes on");
    let (mut stored, mut refused) = (1, 0);
    for sent in sends {
        match sent.await {
            Ok(()) => stored += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Blocked, "{error}");
                assert!(error.to_string().contains("await some"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && stored > 500, "{stored} stored, {refused} refused");
    send().await.expect("there is room again");
    let group = Subscription::queue(queue.clone());
    support::depth(&broker, &group, |depth| depth.ready == Some(stored + 1)).await;
}

#[test]
fn who_no_longer_waits_for_the_cluster_can_end() {
    let (ended, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let url: BrokerUrl = "kafka://127.0.0.1:1?connect=wait".parse().expect("a URL");
        let connect = anybroker_kafka::connect(url);
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(1), connect).await })
            .expect_err("nobody is there");
        // Waits for all that blocks.
        drop(runtime);
        ended.send(()).expect("somebody who waits");
    });
    told.recv_timeout(TIMEOUT).expect("the end of the runtime");
}
