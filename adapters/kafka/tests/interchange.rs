//! Events of the official CloudEvents SDK for Python on confluent-kafka, and ours read by it.

use anybroker_core::{Broker, Outgoing, Subscription};
use anybroker_testkit::interchange::{
    Client, Library, Mode, assert_written, samples, take, unique_name,
};

#[tokio::test(flavor = "multi_thread")]
async fn python_reads_what_we_write_and_we_what_python_writes() {
    let url = std::env::var("ANYBROKER_KAFKA_URL").unwrap_or_else(|error| {
        panic!("ANYBROKER_KAFKA_URL: {error}: run `cargo xtask test kafka`, which starts it")
    });
    let python = Client::new(Library::ConfluentKafka, &url).expect("a Python client");
    let broker = anybroker_kafka::connect(url.parse().expect("a URL")).await.expect("Kafka");
    let samples = samples();

    let theirs = Subscription::queue(unique_name());
    broker.declare(&theirs).await.expect("a queue");
    let mut consumer = broker.consume(&theirs, 10).await.expect("a consumer");
    for mode in [Mode::Binary, Mode::Structured] {
        python.write(theirs.destination().name(), mode, &samples).expect("events by Python");
        for _ in &samples {
            assert_written(&take(&mut *consumer).await, &samples);
        }
    }

    let ours = Subscription::queue(unique_name());
    broker.declare(&ours).await.expect("a queue");
    for sample in &samples {
        let outgoing = Outgoing::new(ours.destination().clone(), sample.clone());
        broker.producer().send(outgoing).await.expect("a confirmed publish");
    }
    python.read(ours.destination().name(), &samples).expect("our events in Python");
}
