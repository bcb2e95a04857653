//! Events of the official CloudEvents SDK for Python on boto3, and ours read by it, through SQS and
//! through SNS.

use std::future::poll_fn;
use std::time::Duration;

use anybroker_core::{Broker, Consumer, Delivery, Outcome, Outgoing, Subscription};
use anybroker_testkit::interchange::{Client, Library, Mode, assert_written, samples};

#[tokio::test(flavor = "multi_thread")]
async fn queues_hold_what_python_and_we_understand() {
    for variable in ["ANYBROKER_SQS_URL", "ANYBROKER_SNS_URL"] {
        let (theirs, ours) = (unique(), unique());
        let subscription = Subscription::queue(theirs.clone());
        python_to_us(variable, &subscription, &format!("queue:{theirs}")).await;
        let subscription = Subscription::queue(ours.clone());
        us_to_python(variable, &subscription, &format!("queue:{ours}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_carry_what_python_and_we_understand() {
    let (theirs, ours) = (unique(), unique());
    let subscription = Subscription::topic(theirs.clone()).group("we");
    python_to_us("ANYBROKER_SNS_URL", &subscription, &format!("topic:{theirs}")).await;
    let subscription = Subscription::topic(ours.clone()).group("python");
    us_to_python("ANYBROKER_SNS_URL", &subscription, &format!("queue:{ours}--python")).await;
}

async fn python_to_us(variable: &str, subscription: &Subscription, place: &str) {
    let (python, broker) = open(variable).await;
    broker.declare(subscription).await.expect("a declared subscription");
    let mut consumer = broker.consume(subscription, 10).await.expect("a consumer");
    let samples = samples();
    python.write(place, Mode::Structured, &samples).expect("events by Python");
    for _ in &samples {
        let delivery = receive(&mut *consumer).await;
        assert_written(delivery.envelope(), &samples);
        delivery.settle(Outcome::Ack).await.expect("a settlement");
    }
}

async fn us_to_python(variable: &str, subscription: &Subscription, place: &str) {
    let (python, broker) = open(variable).await;
    broker.declare(subscription).await.expect("a declared subscription");
    let samples = samples();
    for sample in &samples {
        let outgoing = Outgoing::new(subscription.destination().clone(), sample.clone());
        broker.producer().send(outgoing).await.expect("a confirmed publish");
    }
    python.read(place, &samples).expect("our events in Python");
}

async fn open(variable: &str) -> (Client, std::sync::Arc<anybroker_sqs::SqsBroker>) {
    let url = std::env::var(variable).unwrap_or_else(|error| {
        panic!("{variable}: {error}: run `cargo xtask test sqs`, which starts the servers")
    });
    let python = Client::new(Library::Boto3, &url).expect("a Python client");
    // ElasticMQ knows no topics.
    let sns = if variable == "ANYBROKER_SQS_URL" { "?sns=off" } else { "" };
    let url = format!("{url}{sns}").parse().expect("a URL");
    (python, anybroker_sqs::connect(url).await.expect("SQS"))
}

fn unique() -> String {
    format!("interchange-{:08x}", fastrand::u32(..))
}

async fn receive(consumer: &mut dyn Consumer) -> Delivery {
    let mut out = Vec::new();
    let next = poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
    let received = tokio::time::timeout(Duration::from_secs(10), next).await;
    received.expect("a delivery within 10 s").expect("an open consumer");
    out.pop().expect("a delivery")
}
