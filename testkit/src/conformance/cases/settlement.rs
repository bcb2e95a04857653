//! Settlement: what each outcome does, in any order, and what a late one does not.

use std::time::Duration;

use anybroker_core::{DeadLetterFilter, ErrorKind, Outcome, Subscription};

use crate::conformance::case::{Checked, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, ids_of, message, messages, refused, sorted};
use crate::conformance::process::Process;
use crate::conformance::receiver::settle_all;

cases! {
    an_acknowledged_delivery_stays_away;
    an_unsettled_delivery_comes_back;
    a_retried_delivery_comes_back;
    a_released_delivery_comes_back_to_anybody;
    a_settlement_takes_effect_when_nobody_awaits_it;
    acknowledging_in_any_order_covers_no_other_delivery;
    outcomes_mixed_in_one_burst_each_take_effect;
    a_settlement_after_a_crash_is_refused_as_stale;
}

async fn an_acknowledged_delivery_stays_away(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(3)).await?;
    let mut first = Process::start(&lab, &subscription).await?;
    assert_eq!(first.receiver.ack(3).await?, ids(3));
    first.crash(Vec::new()).await?;
    lab.consume(&subscription).await?.quiet(QUIET).await
}

async fn an_unsettled_delivery_comes_back(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("one");
    let mut receiver = lab.consume(&subscription).await?;
    lab.publish(destination, [message("m0")]).await?;
    drop(receiver.next().await?);
    let again = receiver.next().await?;
    if lab.broker().capabilities().counts_crashes {
        assert_eq!(again.attempt(), 2);
    }
    again.settle(Outcome::Ack).await?;
    receiver.quiet(QUIET).await
}

async fn a_retried_delivery_comes_back(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(5)).await?;
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    for attempt in 1..4 {
        lab.step(format!("attempt {attempt}"));
        let taken = receiver.take(5).await?;
        assert_eq!(ids_of(&taken), ids(5));
        assert!(taken.iter().all(|delivery| delivery.attempt() == attempt), "{taken:?}");
        settle_all(taken, &Outcome::Retry { after: Duration::ZERO }).await?;
    }
    receiver.ack(5).await?;
    receiver.quiet(QUIET).await
}

async fn a_released_delivery_comes_back_to_anybody(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(1)).await?;
    let mut first = lab.consume(&subscription).await?;
    let delivery = first.next().await?;
    delivery.settle(Outcome::Release { after: Duration::ZERO }).await?;
    first.close().await?;
    let other = lab.reconnected().await?;
    let mut second = other.consume(&subscription).await?;
    let delivery = second.next().await?;
    assert_eq!(delivery.attempt(), 1, "a release uses no attempt");
    delivery.settle(Outcome::Ack).await?;
    second.quiet(QUIET).await
}

async fn a_settlement_takes_effect_when_nobody_awaits_it(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(3)).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let [ack, retry, dead]: [_; 3] =
        receiver.take(3).await?.try_into().map_err(|_| "three were taken")?;
    let retried = retry.envelope().id.clone();
    drop(ack.settle(Outcome::Ack));
    drop(retry.settle(Outcome::Retry { after: Duration::ZERO }));
    drop(dead.settle(Outcome::dead_letter("test", "")));
    lab.step("the retried one");
    let again = receiver.next().await?;
    assert_eq!((&again.envelope().id, again.attempt()), (&retried, 2));
    again.settle(Outcome::Ack).await?;
    receiver.close().await?;
    lab.step("nothing but the dead letter is left");
    lab.consume(&subscription).await?.quiet(QUIET).await?;
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert_eq!(peek.entries.len(), 1);
    Ok(())
}

async fn acknowledging_in_any_order_covers_no_other_delivery(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(16)).await?;
    let mut first = Process::start(&lab, &subscription).await?;
    let mut taken = first.receiver.take(16).await?;
    // From the last to the first, every third is kept: a merged settlement must not cover it.
    let mut kept = Vec::new();
    while let Some(delivery) = taken.pop() {
        if taken.len() % 3 == 0 {
            kept.push(delivery);
        } else {
            delivery.settle(Outcome::Ack).await?;
        }
    }
    let expected = ids_of(&kept);
    lab.step("crash");
    first.crash(kept).await?;
    lab.step("exactly the kept ones come back");
    let mut second = lab.consume(&subscription).await?;
    assert_eq!(second.ack(expected.len()).await?, expected);
    second.quiet(QUIET).await
}

async fn outcomes_mixed_in_one_burst_each_take_effect(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(60)).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let mut confirmations = Vec::new();
    let (mut retried, mut released, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    for (index, delivery) in receiver.take(60).await?.into_iter().enumerate() {
        let id = delivery.envelope().id.clone();
        let outcome = match index % 4 {
            0 => Outcome::Ack,
            1 => {
                retried.push(id);
                Outcome::Retry { after: Duration::ZERO }
            }
            2 => {
                released.push(id);
                Outcome::Release { after: Duration::ZERO }
            }
            _ => {
                dead.push(id);
                Outcome::dead_letter("test", "every fourth")
            }
        };
        confirmations.push(delivery.settle(outcome));
    }
    for confirmation in confirmations {
        confirmation.await?;
    }
    lab.step("retried and released ones come back");
    let (mut second, mut first) = (Vec::new(), Vec::new());
    for delivery in receiver.take(retried.len() + released.len()).await? {
        let id = delivery.envelope().id.clone();
        if delivery.attempt() == 1 {
            first.push(id);
        } else {
            second.push(id);
        }
        delivery.settle(Outcome::Ack).await?;
    }
    assert_eq!(sorted(second), sorted(retried));
    assert_eq!(sorted(first), sorted(released));
    receiver.quiet(QUIET).await?;
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 100).await?;
    let found = peek.entries.iter().map(|entry| entry.envelope.id.clone()).collect();
    assert_eq!(sorted(found), sorted(dead));
    Ok(())
}

async fn a_settlement_after_a_crash_is_refused_as_stale(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(2)).await?;
    let mut first = Process::start(&lab, &subscription).await?;
    let held = first.receiver.take(2).await?;
    first.crash(Vec::new()).await?;
    let mut second = lab.consume(&subscription).await?;
    let again = second.take(2).await?;
    lab.step("every late outcome is refused");
    for (stale, outcome) in
        held.into_iter().zip([Outcome::Ack, Outcome::dead_letter("test", "late")])
    {
        refused(ErrorKind::StaleDelivery, stale.settle(outcome)).await?;
    }
    lab.step("and settles nothing");
    settle_all(again, &Outcome::Retry { after: Duration::ZERO }).await?;
    assert_eq!(second.ack(2).await?, ids(2));
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert!(peek.entries.is_empty(), "{peek:?}");
    Ok(())
}
