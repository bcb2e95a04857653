//! Events of the official CloudEvents SDK for Python on pika, and ours read by it.

mod support;

use anybroker_core::{Broker, Subscription};
use anybroker_testkit::interchange::{
    Client, Library, Mode, assert_written, samples, take, unique_name,
};
use support::{connect, delete, send, servers};

#[tokio::test(flavor = "multi_thread")]
async fn python_reads_what_we_write_and_we_what_python_writes() {
    let samples = samples();
    for (_, url) in servers() {
        let python = Client::new(Library::Pika, &url).expect("a Python client");
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique_name());
        broker.declare(&subscription).await.expect("a queue");
        let queue = subscription.stored_name();
        for mode in [Mode::Binary, Mode::Structured] {
            python.write(&queue, mode, &samples).expect("events by Python");
            let mut consumer = broker.consume(&subscription, 10).await.expect("a consumer");
            for _ in &samples {
                assert_written(&take(&mut *consumer).await, &samples);
            }
            consumer.close().await.expect("a close");
        }
        for sample in &samples {
            send(&broker, subscription.destination().clone(), sample.clone()).await;
        }
        python.read(&queue, &samples).expect("our events in Python");
        delete(&broker, &subscription).await;
    }
}
