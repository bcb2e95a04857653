//! Attempt numbers: right over retries, releases, crashes and new connections.

use std::time::Duration;

use anybroker_core::{Outcome, Subscription};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, messages};
use crate::conformance::process::Process;

cases! {
    a_message_whose_consumer_crashes_thirty_times_is_still_there, within 120;
    attempts_count_retries_and_crashes_but_no_releases;
    a_crash_counts_for_the_message_that_was_held: Need::Of(
        |can| can.counts_crashes,
        "the broker does not count what a crash returns",
    );
    a_crash_brings_the_message_back_with_its_attempt: Need::Of(
        |can| !can.counts_crashes,
        "the broker counts what a crash returns",
    );
}

const AT_ONCE: Duration = Duration::ZERO;
/// Long enough that the broker must keep the copy, past the shortest tier of a second.
const LATER: Duration = Duration::from_millis(1300);

async fn a_message_whose_consumer_crashes_thirty_times_is_still_there(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription =
        Subscription::queue(queue.clone()).unlimited_deliveries().lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let counted = lab.broker().capabilities().counts_crashes;
    for crash in 0..30 {
        lab.step(format!("crash {crash}"));
        let mut process = Process::start(&lab, &subscription).await?;
        let delivery = process.receiver.next().await?;
        if counted {
            assert_eq!(delivery.attempt(), crash + 1);
        }
        process.crash(vec![delivery]).await?;
    }
    lab.step("still there");
    let mut receiver = lab.consume(&subscription).await?;
    let delivery = receiver.next().await?;
    if counted {
        assert_eq!(delivery.attempt(), 31);
    }
    delivery.settle(Outcome::Ack).await?;
    receiver.quiet(QUIET).await
}

async fn attempts_count_retries_and_crashes_but_no_releases(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("one");
    let subscription = subscription.lease(Duration::from_secs(1));
    lab.broker().declare(&subscription).await?;
    lab.publish(destination, messages(1)).await?;
    let crash_counts = u32::from(lab.broker().capabilities().counts_crashes);
    let mut expected = 1;
    // Twice, since a count that is kept beside the message may be lost when it is written again.
    for round in 0..2 {
        for (step, outcome, counts) in [
            ("retry at once", Some(Outcome::Retry { after: AT_ONCE }), 1),
            ("release at once", Some(Outcome::Release { after: AT_ONCE }), 0),
            ("crash", None, crash_counts),
            ("retry later", Some(Outcome::Retry { after: LATER }), 1),
            ("crash after a stored retry", None, crash_counts),
            ("release later", Some(Outcome::Release { after: LATER }), 0),
            ("release once more", Some(Outcome::Release { after: AT_ONCE }), 0),
        ] {
            lab.step(format!("round {round}: {step}"));
            let mut process = Process::start(&lab, &subscription).await?;
            let delivery = process.receiver.next().await?;
            assert_eq!(delivery.attempt(), expected, "before: {step}");
            match outcome {
                Some(outcome) => {
                    delivery.settle(outcome).await?;
                    process.end().await?;
                }
                None => process.crash(vec![delivery]).await?,
            }
            expected += counts;
        }
    }
    lab.step("the end");
    let mut receiver = lab.consume(&subscription).await?;
    let delivery = receiver.next().await?;
    assert_eq!(delivery.attempt(), expected);
    delivery.settle(Outcome::Ack).await?;
    receiver.quiet(QUIET).await
}

async fn a_crash_counts_for_the_message_that_was_held(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let mut process = Process::start(&lab, &subscription).await?;
    let held = process.receiver.next().await?;
    assert_eq!(held.attempt(), 1);
    process.crash(vec![held]).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let again = receiver.next().await?;
    assert_eq!(again.attempt(), 2);
    again.settle(Outcome::Ack).await?;
    Ok(())
}

async fn a_crash_brings_the_message_back_with_its_attempt(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let mut process = Process::start(&lab, &subscription).await?;
    let first = process.receiver.next().await?;
    first.settle(Outcome::Retry { after: AT_ONCE }).await?;
    let held = process.receiver.next().await?;
    assert_eq!(held.attempt(), 2);
    process.crash(vec![held]).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let again = receiver.next().await?;
    assert!((2..=3).contains(&again.attempt()), "{again:?}");
    again.settle(Outcome::Ack).await?;
    Ok(())
}
