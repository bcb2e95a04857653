//! Looking at a group that somebody has cut off while it was declared, on each version.

mod support;

use anybroker_core::{Broker, DeadLetterFilter, Envelope, Outcome, Queue, Redrive, Subscription};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use support::{connect, delete, receive, send, servers, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_dead_letter_queue_has_no_dead_letters() {
    for (server, url) in servers() {
        let broker = connect(&url).await;
        let subscription = Subscription::queue(unique("half"));
        broker.declare(&subscription).await.expect("a queue");
        let dlq = subscription.derived_name("dlq");
        let channel = broker.channel().await.expect("a channel");
        let deleted = channel.queue_delete(dlq.as_str().into(), QueueDeleteOptions::default());
        deleted.await.expect("deleted");

        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!(depth.dead_lettered, Some(0), "{server}");
        let all = DeadLetterFilter::all();
        let letters = broker.dead_letters(&subscription, &all, 10).await.expect("a look");
        assert!(letters.entries.is_empty() && letters.complete, "{server}");
        assert_eq!(broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive"), 0);
        assert_eq!(broker.purge_dead_letters(&subscription).await.expect("a purge"), 0);
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(dlq.as_str().into(), passive, FieldTable::default());
        found.await.expect_err("looking made it");

        // Another connection, which declares what it uses, makes it again.
        let other = connect(&url).await;
        let mut consumer = other.consume(&subscription, 10).await.expect("a consumer");
        send(&other, Queue::new(subscription.group_name().to_owned()), Envelope::new("t", "{}"))
            .await;
        let given_up = Outcome::dead_letter("test", "");
        receive(&mut consumer).await.settle(given_up).await.expect("a dead letter");
        let letters = broker.dead_letters(&subscription, &all, 10).await.expect("a look");
        assert_eq!(letters.entries.len(), 1, "{server}");
        delete(&broker, &subscription).await;
    }
}
