//! A deadline ends a wait, never the work: declarations and questions go on to their end.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, Destination, Envelope, Error, Outgoing, Queue, Topic};
use anybroker_testkit::Proxy;
use support::{connect, servers, unique};
use tokio::time::{Instant, sleep, timeout};

/// How long a message takes to the server, and its answer back.
const WAY: Duration = Duration::from_millis(120);

const PATIENCE: Duration = Duration::from_mins(2);

fn message() -> Envelope {
    Envelope::new("t", "x")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_longer_than_the_deadline_is_not_begun_anew() {
    for (server, url) in servers() {
        let proxy = Proxy::start(&url).await.expect("a proxy");
        // Enough for a message on its way, too little for all that a queue needs.
        let broker = connect(&format!("{}?publish-timeout=800ms", proxy.url())).await;
        let far = tokio::spawn(async move {
            loop {
                proxy.swallow();
                sleep(WAY).await;
                proxy.pass();
                sleep(Duration::from_millis(1)).await;
            }
        });
        let (queue, begun) = (Queue::new(unique("far")), Instant::now());
        let publish = || broker.producer().send(Outgoing::new(queue.clone(), message()));
        let mut failed = 0;
        while let Err(error) = publish().await {
            failed += 1;
            assert!(begun.elapsed() < PATIENCE, "{server}: {failed}: {error:?}");
        }
        assert!(failed > 0, "{server}: the declaration takes longer than one publish may");
        far.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_nobody_waits_for_is_answered_to_nobody_else() {
    for (server, url) in servers() {
        let patient = format!("{url}?publish-timeout=120s");
        let (broker, other) = (connect(&patient).await, connect(&patient).await);
        // They exist, and this connection has to ask for each.
        let queues: Vec<_> = (0..8).map(|_| Queue::new(unique("jobs"))).collect();
        for queue in &queues {
            other.declare_destination(&queue.clone().into()).await.expect("a queue");
        }
        let dropped = tokio::spawn({
            let broker = broker.clone();
            async move {
                loop {
                    // A new topic's name is looked for among the queues, in vain.
                    let topic = Destination::from(Topic::new(unique("news")));
                    let patience = Duration::from_micros(fastrand::u64(..60_000));
                    let _ = timeout(patience, broker.declare_destination(&topic)).await;
                    // It goes on, and this waits for its end: they must not pile up.
                    let _ = broker.declare_destination(&topic).await;
                }
            }
        });
        let mut refused: Vec<Error> = Vec::new();
        for queue in queues {
            let sent = broker.producer().send(Outgoing::new(queue, message())).await;
            refused.extend(sent.err());
        }
        dropped.abort();
        assert!(refused.is_empty(), "{server}: they exist: {refused:?}");
    }
}
