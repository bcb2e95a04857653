use anybroker_core::{
    Broker, BrokerUrl, Declare, Destination, Envelope, Error, ErrorKind, Queue, Redrive,
    Subscription,
};
use anybroker_memory::{MemoryBroker, connect};

use crate::receiver::*;

fn email() -> Subscription {
    Subscription::topic("t").group("email")
}

fn assert_error(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{error} does not contain {part:?}");
    }
}

#[tokio::test]
async fn verify_finds_what_is_missing_and_creates_nothing() {
    let creating = MemoryBroker::builder().name("verify").build();
    for declare in [Declare::Verify, Declare::Off] {
        let broker = MemoryBroker::builder().name("verify").declare(declare).build();
        let missing = |result: Result<(), Error>| {
            assert_error(&result.unwrap_err(), ErrorKind::NotFound, &["declare it first"]);
        };
        missing(broker.declare_destination(&Destination::queue("missing")).await);
        missing(broker.declare(&Subscription::queue("missing")).await);
        missing(broker.consume(&Subscription::queue("missing"), 1).await.map(drop));
        missing(send(&broker, Queue::new("missing"), message("a")).await);
        missing(broker.depth(&Subscription::queue("missing")).await.map(drop));
        missing(broker.redrive(&Subscription::queue("missing"), &Redrive::all()).await.map(drop));

        creating.declare_destination(&Destination::topic("t")).await.unwrap();
        missing(broker.declare(&email().group(format!("{declare:?}"))).await);
        creating.declare(&email()).await.unwrap();
        broker.declare(&email()).await.unwrap();
    }
}

#[tokio::test]
async fn another_shape_is_a_mismatch_that_shows_both() {
    let broker = broker();
    let queue = Queue::new("q").ordered().partitions(4);
    broker.declare_destination(&queue.clone().into()).await.unwrap();
    broker.declare(&Subscription::queue(queue)).await.unwrap();
    let both = ["as ordered queue with partitions: 4", "as unordered queue with partitions: 1"];
    let error = broker.declare(&Subscription::queue("q")).await.unwrap_err();
    assert_error(&error, ErrorKind::Mismatch, &both);
    let error = send(&broker, Queue::new("q"), message("a")).await.unwrap_err();
    assert_error(&error, ErrorKind::Mismatch, &both);

    broker.declare(&email()).await.unwrap();
    let error = broker.consume(&email().ordered(), 1).await.unwrap_err();
    assert_error(&error, ErrorKind::Mismatch, &["\"email\"", "as unordered", "as ordered"]);
}

#[tokio::test]
async fn name_is_a_queue_or_a_topic() {
    let broker = broker();
    broker.declare_destination(&Destination::topic("t")).await.unwrap();
    let error = send(&broker, Queue::new("t"), message("a")).await.unwrap_err();
    let both = ["as unordered topic", "as unordered queue"];
    assert_error(&error, ErrorKind::Mismatch, &both);
    let error = broker.depth(&Subscription::queue("t")).await.unwrap_err();
    assert_error(&error, ErrorKind::Mismatch, &both);
}

#[tokio::test]
async fn broken_names_and_envelopes_are_refused() {
    let broker = broker();
    let invalid = |result: Result<(), Error>| {
        assert_error(&result.unwrap_err(), ErrorKind::Invalid, &["memory: "]);
    };
    invalid(broker.declare_destination(&Destination::queue("a--b")).await);
    invalid(broker.declare(&Subscription::topic("t")).await);
    invalid(broker.consume(&Subscription::topic("t").group("a_b"), 1).await.map(drop));
    invalid(send(&broker, Queue::new(".q"), message("a")).await);
    invalid(send(&broker, Queue::new("q"), message("")).await);
    publish(&broker, Queue::native("a--b"), &["a"]).await;
}

#[tokio::test]
async fn payload_is_limited() {
    let broker = MemoryBroker::builder().max_payload(10).build();
    assert_eq!(broker.capabilities().max_payload, 10);
    let sized = |size: usize| Envelope::new("test.message", vec![b'x'; size]);
    send(&broker, Queue::new("q"), sized(10)).await.unwrap();
    let error = send(&broker, Queue::new("q"), sized(11)).await.unwrap_err();
    assert_error(&error, ErrorKind::TooLarge, &["11 bytes", "10", "max-payload"]);
}

#[tokio::test]
async fn name_in_the_url_shares_a_broker_that_stays() {
    let connect = async |url: &str| connect(url.parse().unwrap()).await.unwrap();
    publish(&*connect("memory://shared").await, Queue::new("q"), &["a"]).await;
    let queue = Subscription::queue("q");
    assert_eq!(depth(&*connect("memory://shared?capacity=5").await, &queue).await, [1, 0, 0, 0]);

    let apart = connect("memory://shared?prefix=dev").await;
    assert_error(&apart.depth(&queue).await.unwrap_err(), ErrorKind::NotFound, &["\"q\""]);
    publish(&apart, Queue::new("q"), &["b", "c"]).await;
    assert_eq!(depth(&*connect("memory://shared?prefix=dev").await, &queue).await, [2, 0, 0, 0]);
    assert_eq!(depth(&*connect("memory://shared").await, &queue).await, [1, 0, 0, 0]);

    publish(&*connect("memory://").await, Queue::new("q"), &["a"]).await;
    let fresh = connect("memory://?prefix=dev").await;
    assert_error(&fresh.depth(&queue).await.unwrap_err(), ErrorKind::NotFound, &["\"q\""]);
}

#[tokio::test]
async fn url_that_is_not_understood_says_what_to_write() {
    for (url, part) in [
        ("memory://name/path", "memory://name"),
        ("memory://a,b", "memory://name"),
        ("memory://?prefix=a_b", "prefix name \"a_b\" may contain only letters"),
        ("memory://name:7", "memory://name"),
        ("memory://user@name", "memory://name"),
        ("amqp://host", "memory://"),
        ("memory://?capacity=0", "a number from 1"),
        ("memory://?publish-timeout=soon", "30s"),
        ("memory://?declare=maybe", "create, verify or off"),
        ("memory://?max-payload=much", "a number of bytes"),
        ("memory://?max_payload=1", "max-payload"),
    ] {
        let url: BrokerUrl = url.parse().unwrap();
        assert_error(&connect(url).await.unwrap_err(), ErrorKind::Config, &[part]);
    }
    let all = "memory://?capacity=7&publish-timeout=1s&declare=verify&max-payload=9";
    assert_eq!(connect(all.parse().unwrap()).await.unwrap().capabilities().max_payload, 9);
}
