//! Messages of a machine whose clock is wrong: what they wait for counts from the time at which SQS
//! stored them.

mod support;

use std::time::{Duration, SystemTime};

use anybroker_core::cloudevents::write_attributes;
use anybroker_core::{Envelope, Hop, Outcome, Subscription};
use support::{both, consume, receive, settle, unique};

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

#[tokio::test]
async fn a_delay_and_an_expiry_count_from_the_servers_time_of_storing() {
    let hour = Duration::from_hours(1);
    for broker in both().await {
        let subscription = Subscription::queue(unique("clocks"));
        let url = broker.queue_url(&subscription).await.expect("a URL");
        // A clock that is behind, one that is ahead, and two that cannot be believed.
        for wrong in [None, Some(true), Some(false)] {
            let begun = SystemTime::now();
            let clock = match wrong {
                None => begun,
                Some(true) => begun + hour,
                Some(false) => begun - hour,
            };
            let after = |seconds| text(clock + Duration::from_secs(seconds));
            let clocks = match wrong {
                None => vec!["1970-01-01T00:00:00Z".to_owned(), "9999-12-31T00:00:00Z".to_owned()],
                Some(_) => vec![after(0)],
            };
            for clock in clocks {
                let body = format!(
                    r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","abclock":"{clock}",
                        "notbefore":"{}","expirytime":"{}","data":{{}}}}"#,
                    after(2),
                    after(20)
                );
                let send = broker.sqs().send_message().queue_url(&url).message_body(body);
                send.send().await.expect("sent");
                let mut consumer = consume(&broker, &subscription).await;
                let delivery = receive(&mut consumer).await;
                // Whole seconds, and what a test on a busy machine may take.
                let about = |time: SystemTime, least: u64| {
                    let least = begun + Duration::from_secs(least) - Duration::from_secs(2);
                    time >= least && time < least + Duration::from_secs(30)
                };
                let due = delivery.hop().not_before.expect("it is delayed");
                assert!(about(due, 2), "{clock}: {due:?} {begun:?}");
                let expires = delivery.envelope().expires.expect("it expires");
                assert!(about(expires, 20), "{clock}: {expires:?} {begun:?}");
                settle(delivery, Outcome::Ack).await;
                consumer.close().await.expect("closed");
            }
        }
    }
}
