//! Messages of a machine whose clock is wrong: what they wait for counts from the server's time of
//! storing.

mod support;

use std::time::{Duration, SystemTime};

use anybroker_core::cloudevents::write_attributes;
use anybroker_core::{Broker, Envelope, Hop, Outcome, Outgoing, Subscription};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::cmd;
use support::{ack, connect, message, receive, run, server, servers, unique};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// What a test on a busy machine may take.
const SLACK: Duration = Duration::from_secs(10);

/// A time as an attribute has it.
fn text(time: SystemTime) -> String {
    let mut text = String::new();
    let envelope = Envelope::new("t", "").with_expires(time);
    write_attributes(&envelope, &Hop::default(), |name, value| {
        if name == "expirytime" {
            value.clone_into(&mut text);
        }
    });
    text
}

/// Stores a message with a delay of two seconds that expires in twenty, by the clock of a publisher
/// who says what it shows.
async fn add(broker: &RedisBroker, queue: &str, clock: SystemTime, said: &str) {
    let mut add = cmd("XADD");
    add.arg(queue).arg("*");
    for (attribute, value) in [
        ("specversion", "1.0"),
        ("id", "1"),
        ("source", "s"),
        ("type", "t"),
        ("abclock", said),
        ("notbefore", &text(clock + 2 * SECOND)),
        ("expirytime", &text(clock + 20 * SECOND)),
    ] {
        add.arg(format!("ce_{attribute}")).arg(value);
    }
    let _: String = run(broker, &add).await;
}

fn about(time: SystemTime, least: SystemTime) -> bool {
    time >= least && time < least + SLACK
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_and_an_expiry_count_from_the_servers_time_of_storing() {
    for url in servers() {
        let broker = connect(&url).await;
        for ahead in [false, true] {
            let name = unique("clocks");
            let subscription = Subscription::queue(name.clone());
            let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
            let begun = SystemTime::now();
            let clock = if ahead { begun + HOUR } else { begun - HOUR };
            add(&broker, &name, clock, &text(clock)).await;
            let delivery = receive(&mut consumer).await;
            let due = delivery.hop().not_before.expect("it is delayed");
            assert!(about(due, begun + 2 * SECOND), "{due:?} {ahead} {begun:?}");
            let expires = delivery.envelope().expires.expect("it expires");
            assert!(about(expires, begun + 20 * SECOND), "{expires:?} {ahead} {begun:?}");

            // The copies are those of a machine whose clock is right.
            delivery.settle(Outcome::Retry { after: SECOND }).await.expect("kept");
            for _ in 0..2 {
                let delivery = receive(&mut consumer).await;
                let expires = delivery.envelope().expires.expect("so does the copy");
                assert!(about(expires, begun + 20 * SECOND), "{expires:?} {ahead} {begun:?}");
                let due = delivery.hop().not_before;
                assert!(due.is_none_or(|due| due < SystemTime::now() + SECOND / 2), "{due:?}");
                if delivery.attempt() < 3 {
                    delivery.settle(Outcome::Retry { after: Duration::ZERO }).await.expect("kept");
                } else {
                    ack(delivery).await;
                }
            }
        }
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_cannot_be_believed_changes_nothing() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("clocks");
        let subscription = Subscription::queue(name.clone());
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        for said in ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "noon"]
        {
            let begun = SystemTime::now();
            add(&broker, &name, begun, said).await;
            let delivery = receive(&mut consumer).await;
            assert_eq!(delivery.hop().not_before, Some(begun + 2 * SECOND), "{said}");
            assert_eq!(delivery.envelope().expires, Some(begun + 20 * SECOND), "{said}");
            ack(delivery).await;
        }
        broker.close().await.expect("a close");
    }
}

/// What nobody moved in time was not stored by a clock that is behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_is_no_later_when_a_delay_is_over_with_nobody_there() {
    let broker = connect(&server()).await;
    let subscription = Subscription::queue(unique("clocks"));
    broker.declare(&subscription).await.expect("a queue");
    let begun = SystemTime::now();
    let envelope = message("1").with_expires(begun + 60 * SECOND);
    let outgoing = Outgoing::new(subscription.destination().clone(), envelope);
    broker.producer().send(outgoing.with_delay(SECOND)).await.expect("stored");
    tokio::time::sleep(15 * SECOND).await;
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let delivery = receive(&mut consumer).await;
    let expires = delivery.envelope().expires.expect("it expires");
    assert!(about(expires, begun + 60 * SECOND), "{expires:?} {begun:?}");
    ack(delivery).await;
    broker.close().await.expect("a close");
}
