//! What the broker's capabilities say of settlements and holds is so.

use std::time::Duration;

use anybroker_core::{ErrorKind, Outcome, SettlementProof, Subscription, Worker};
use tokio::time::{sleep, timeout};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, messages, refused};
use crate::conformance::receiver::settle_all;
use crate::conformance::worked::{Sightings, acknowledge};

cases! {
    a_confirmed_settlement_is_seen_by_others_at_once: Need::Of(
        |can| can.settlement == SettlementProof::Confirmed,
        "a settlement that is Ok is not confirmed by the broker",
    );
    a_written_settlement_outlives_its_connection: Need::Of(
        |can| can.settlement == SettlementProof::Written,
        "a settlement that is Ok is more, or less, than written",
    );
    a_recorded_settlement_is_answered_at_once_and_kept_at_the_end: Need::Of(
        |can| can.settlement == SettlementProof::Recorded,
        "a settlement that is Ok is more than recorded in this process",
    );
    a_settlement_after_its_lease_is_refused_whoever_has_the_message: Need::Of(
        |can| can.settlement == SettlementProof::WithinLease,
        "whether a settlement is Ok is not judged by the local clock",
    );
    a_lease_longer_than_a_delivery_can_be_held_is_refused: Need::Of(
        |can| can.longest_hold.is_some(),
        "a delivery can be held for any time",
    );
    where_a_delivery_can_be_held_for_any_time_so_can_its_lease: Need::Of(
        |can| can.longest_hold.is_none(),
        "a delivery cannot be held for any time",
    );
}

async fn a_confirmed_settlement_is_seen_by_others_at_once(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(20)).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let taken = receiver.take(20).await?;
    let other = lab.connect().await?;
    settle_all(taken, &Outcome::Ack).await?;
    let depth = other.depth(&subscription).await?;
    assert_eq!((depth.ready, depth.in_flight), (Some(0), Some(0)));
    other.close().await?;
    Ok(())
}

async fn a_written_settlement_outlives_its_connection(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(20)).await?;
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&subscription).await?;
    settle_all(receiver.take(20).await?, &Outcome::Ack).await?;
    other.broker().close().await?;
    lab.consume(&subscription).await?.quiet(QUIET).await
}

async fn a_recorded_settlement_is_answered_at_once_and_kept_at_the_end(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(20)).await?;
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&subscription).await?;
    for delivery in receiver.take(20).await? {
        timeout(Duration::ZERO, delivery.settle(Outcome::Ack)).await??;
    }
    other.broker().close().await?;
    lab.consume(&subscription).await?.quiet(QUIET).await
}

async fn a_settlement_after_its_lease_is_refused_whoever_has_the_message(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&subscription).await?;
    let late = receiver.next().await?;
    let (_, lease) = receiver.lease().ok_or("leased, but the consumer has no lease")?;
    sleep(lease + Duration::from_millis(200)).await;
    refused(ErrorKind::StaleDelivery, late.settle(Outcome::Ack)).await?;
    receiver.close().await?;
    lab.step("it was not settled");
    lab.consume(&subscription).await?.ack(1).await?;
    Ok(())
}

async fn a_lease_longer_than_a_delivery_can_be_held_is_refused(lab: Lab) -> Checked {
    let longest = lab.broker().capabilities().longest_hold.ok_or("the case needs a limit")?;
    let subscription = Subscription::queue(lab::queue());
    for (lease, fits) in [(longest, true), (longest + Duration::from_secs(1), false)] {
        lab.step(format!("a lease of {lease:?}"));
        let (_seen, service) = Sightings::of(acknowledge);
        let worker = Worker::new(lab.broker().clone());
        let start = worker.subscribe(subscription.clone().lease(lease), service).start();
        if fits {
            start.await?.run_until(std::future::ready(())).await?;
        } else {
            let error = refused(ErrorKind::Invalid, start).await?;
            assert!(error.to_string().contains(&format!("{longest:?}")), "{error}");
        }
    }
    Ok(())
}

async fn where_a_delivery_can_be_held_for_any_time_so_can_its_lease(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_hours(48));
    lab.publish(queue, messages(1)).await?;
    lab.consume(&subscription).await?.ack(1).await?;
    Ok(())
}
