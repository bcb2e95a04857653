//! Events of the official CloudEvents SDK for Python on boto3, and ours read by it, through SQS and
//! through SNS.

use anybroker_core::{Broker, Outgoing, Subscription};
use anybroker_testkit::interchange::{
    Client, Library, Mode, assert_written, samples, take, unique_name,
};

#[tokio::test(flavor = "multi_thread")]
async fn queues_hold_what_python_and_we_understand() {
    for variable in ["ANYBROKER_ELASTICMQ_URL", "ANYBROKER_SQS_URL"] {
        let (theirs, ours) = (unique_name(), unique_name());
        let subscription = Subscription::queue(theirs.clone());
        python_to_us(variable, &subscription, &format!("queue:{theirs}")).await;
        let subscription = Subscription::queue(ours.clone());
        us_to_python(variable, &subscription, &format!("queue:{ours}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_carry_what_python_and_we_understand() {
    let (theirs, ours) = (unique_name(), unique_name());
    let subscription = Subscription::topic(theirs.clone()).group("we");
    python_to_us("ANYBROKER_SQS_URL", &subscription, &format!("topic:{theirs}")).await;
    let subscription = Subscription::topic(ours.clone()).group("python");
    us_to_python("ANYBROKER_SQS_URL", &subscription, &format!("queue:{ours}--python")).await;
}

async fn python_to_us(variable: &str, subscription: &Subscription, place: &str) {
    let (python, broker) = open(variable).await;
    broker.declare(subscription).await.expect("a declared subscription");
    let mut consumer = broker.consume(subscription, 10).await.expect("a consumer");
    let samples = samples();
    python.write(place, Mode::Structured, &samples).expect("events by Python");
    for _ in &samples {
        assert_written(&take(&mut *consumer).await, &samples);
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
    let sns = if variable == "ANYBROKER_ELASTICMQ_URL" { "?sns=off" } else { "" };
    let url = format!("{url}{sns}").parse().expect("a URL");
    (python, anybroker_sqs::connect(url).await.expect("SQS"))
}
