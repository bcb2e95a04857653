//! Events of Python, written and read by redis-py in the layout of fields that we use.

use anybroker_core::{Broker, Outgoing, Subscription};
use anybroker_testkit::interchange::{
    Client, Library, Mode, assert_written, samples, take, unique_name,
};

#[tokio::test(flavor = "multi_thread")]
async fn python_reads_what_we_write_and_we_what_python_writes() {
    let samples = samples();
    for name in ["ANYBROKER_REDIS_70_URL", "ANYBROKER_REDIS_8_URL", "ANYBROKER_VALKEY_9_URL"] {
        let url = std::env::var(name).unwrap_or_else(|error| {
            panic!("{name}: {error}: run `cargo xtask test redis`, which starts the servers")
        });
        let python = Client::new(Library::Redis, &url).expect("a Python client");
        let broker = anybroker_redis::connect(url.parse().expect("a URL")).await.expect("Redis");

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
}
