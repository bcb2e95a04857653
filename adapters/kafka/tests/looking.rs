//! Looking at a group that somebody has cut off while it was declared.

mod support;

use anybroker_core::{Broker, DeadLetterFilter, Redrive, Subscription};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use support::{connect_single, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_dead_letter_topic_has_no_dead_letters() {
    let broker = connect_single().await;
    let subscription = Subscription::queue(unique("half"));
    broker.declare(&subscription).await.expect("a queue");
    let dlq = subscription.derived_name("dlq");
    let admin: AdminClient<DefaultClientContext> =
        broker.client_config().create().expect("an admin client");
    let deleted = admin.delete_topics(&[&dlq], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    // The deletion is done behind the answer.
    support::depth(&broker, &subscription, |depth| depth.dead_lettered == Some(0)).await;
    let exists = || {
        let metadata = admin.inner().fetch_metadata(None, std::time::Duration::from_secs(20));
        metadata.expect("metadata").topics().iter().any(|topic| topic.name() == dlq)
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while exists() {
        assert!(std::time::Instant::now() < end, "it is not deleted");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
    let letters = letters.expect("a look");
    assert!(letters.entries.is_empty() && letters.complete);
    assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive"), 0);
    assert_eq!(broker.purge_dead_letters(&subscription).await.expect("a purge"), 0);
    assert_eq!(broker.depth(&subscription).await.expect("a depth").dead_lettered, Some(0));
    assert!(!exists(), "looking made it");
}
