//! A worker that drains cuts no wait short.

use std::time::Duration;

use anybroker_core::{Destination, Outcome, Outgoing, Queue, Subscription, Worker};
use tokio::time::Instant;

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, message};
use crate::conformance::worked::{Sight, Sightings, Working, acknowledge};

cases! {
    a_retry_that_waits_when_its_worker_drains_is_not_early;
    an_ordered_retry_that_waits_when_its_worker_drains_is_not_early;
    an_ordered_retry_that_waits_longer_than_the_drain_is_not_early: Need::Of(
        |can| can.ordered_delays,
        "what an ordered group gives back comes at once",
    );
    an_ordered_retry_that_waits_longer_than_the_drain_keeps_its_place: Need::Of(
        |can| !can.ordered_delays,
        "what an ordered group gives back keeps its time too",
    );
    a_drain_counts_nothing_of_what_is_delayed_in_order;
}

const WAIT: Duration = Duration::from_secs(4);
const LONG: Duration = Duration::from_secs(15);
const SHORT: Duration = Duration::from_secs(1);

/// Drains a worker whose first message waits for its retry, while another one takes over. Answers
/// when the message was seen first, and what the other saw.
async fn hand_over(lab: &Lab, queue: Queue, drain: Duration) -> Checked<(Instant, Vec<Sight>)> {
    let subscription = Subscription::queue(queue.clone());
    let ordered = Destination::from(queue.clone()).is_ordered();
    let followers: &[&str] = if ordered { &["m1", "m2"] } else { &[] };
    let (mut seen, service) = Sightings::of(|_| async { Ok(Outcome::Retry { after: WAIT }) });
    let other = lab.reconnected().await?;
    let worker = Worker::new(other.broker().clone()).concurrency(16).drain_timeout(drain);
    let working = Working::start(worker.subscribe(subscription.clone(), service)).await?;
    lab.publish(queue.clone(), [message("m0").with_key("same")]).await?;
    let first = seen.next().await?;
    assert_eq!((&*first.id, first.attempt), ("m0", 1));
    for id in followers {
        lab.publish(queue.clone(), [message(id).with_key("same")]).await?;
    }
    lab.step("drain");
    let (mut seen, service) = Sightings::of(acknowledge);
    let (drained, next) = tokio::join!(working.drain(), Working::on(lab, &subscription, service));
    let (report, next) = (drained?, next?);
    assert_eq!((report.retried, report.stale, report.unsettled), (1, 0, 0), "{report}");
    lab.step("the rest");
    let sights = seen.take(1 + followers.len()).await?;
    next.drain().await?;
    Ok((first.at, sights))
}

fn not_early(first: Instant, sights: &[Sight]) {
    let took = sights[0].at - first;
    assert!(took >= WAIT, "{WAIT:?} is early: after {took:?}");
}

fn in_place(sights: &[Sight]) {
    let ids: Vec<_> = sights.iter().map(|sight| &*sight.id).collect();
    assert_eq!(ids, ["m0", "m1", "m2"]);
}

async fn a_retry_that_waits_when_its_worker_drains_is_not_early(lab: Lab) -> Checked {
    let (first, sights) = hand_over(&lab, lab::queue(), LONG).await?;
    not_early(first, &sights);
    assert_eq!(sights[0].attempt, 2);
    Ok(())
}

async fn an_ordered_retry_that_waits_when_its_worker_drains_is_not_early(lab: Lab) -> Checked {
    let (first, sights) = hand_over(&lab, lab::queue().ordered(), LONG).await?;
    in_place(&sights);
    not_early(first, &sights);
    Ok(())
}

async fn an_ordered_retry_that_waits_longer_than_the_drain_is_not_early(lab: Lab) -> Checked {
    let (first, sights) = hand_over(&lab, lab::queue().ordered(), SHORT).await?;
    in_place(&sights);
    not_early(first, &sights);
    Ok(())
}

async fn an_ordered_retry_that_waits_longer_than_the_drain_keeps_its_place(lab: Lab) -> Checked {
    let (_, sights) = hand_over(&lab, lab::queue().ordered(), SHORT).await?;
    in_place(&sights);
    assert_eq!(sights[0].attempt, 2);
    Ok(())
}

/// The first waits for its time, the others for the first: wherever they are when their worker
/// drains, no handler has seen them.
async fn a_drain_counts_nothing_of_what_is_delayed_in_order(lab: Lab) -> Checked {
    let subscription = Subscription::queue(lab::queue().ordered());
    let ids = ["m0", "m1", "m2"];
    let producer = lab.broker().producer();
    lab.broker().declare(&subscription).await?;
    for id in ids {
        let outgoing =
            Outgoing::new(subscription.destination().clone(), message(id).with_key("same"));
        producer.send(outgoing.with_delay(WAIT)).await?;
    }
    let other = lab.reconnected().await?;
    let (mut seen, service) = Sightings::of(acknowledge);
    let worker = Worker::new(other.broker().clone()).drain_timeout(SHORT);
    let working = Working::start(worker.subscribe(subscription.clone(), service)).await?;
    seen.quiet(QUIET).await?;
    lab.step("drain");
    let report = working.drain().await?;
    assert_eq!((report.handled, report.unsettled), (0, 0), "{report}");
    lab.step("the rest");
    let (mut seen, service) = Sightings::of(acknowledge);
    let next = Working::on(&lab, &subscription, service).await?;
    for (id, sight) in ids.iter().zip(seen.take(ids.len()).await?) {
        assert_eq!((&*sight.id, sight.attempt), (*id, 1));
    }
    next.drain().await?;
    Ok(())
}
