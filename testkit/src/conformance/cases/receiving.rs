//! Consumers: how many deliveries they hold, and what becomes of those they let go.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use anybroker_core::{ErrorKind, Outcome, Subscription};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, PATIENCE, QUIET, ids, ids_of, messages, refused, sorted};
use crate::conformance::receiver::{Receiver, settle_all};

cases! {
    no_more_than_the_prefetch_is_unsettled;
    cancelled_receive_loses_nothing;
    a_closed_consumer_gives_back_what_it_did_not_hand_out;
    a_dropped_consumer_gives_back_what_it_held;
    closing_waits_for_settlements;
    a_consumer_of_a_closed_broker_ends;
    a_renewed_lease_keeps_the_delivery: Need::Of(|can| can.leased, "deliveries are not leased");
    a_lease_that_ran_out_gives_the_delivery_to_another: Need::Of(
        |can| can.leased,
        "deliveries are not leased",
    );
    without_leases_there_is_nothing_to_renew: Need::Of(
        |can| !can.leased,
        "deliveries are leased",
    );
}

async fn no_more_than_the_prefetch_is_unsettled(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(10)).await?;
    let mut receiver = Receiver::open(lab.broker(), &Subscription::queue(queue), 3).await?;
    let mut held = receiver.take(3).await?;
    lab.step("a fourth must wait");
    receiver.quiet(QUIET).await?;
    for received in 3..10 {
        lab.step(format!("delivery {received} after one settlement"));
        held.remove(0).settle(Outcome::Ack).await?;
        held.push(receiver.next().await?);
    }
    lab.step("a dropped one frees its place too");
    let expected = ids_of(&held);
    drop(held);
    assert_eq!(receiver.ack(3).await?, expected);
    receiver.quiet(QUIET).await
}

async fn cancelled_receive_loses_nothing(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let mut consumer = lab.broker().consume(&subscription, 64).await?;
    let count = 500;
    let mut none = Vec::new();
    let waits = poll_fn(|cx| Poll::Ready(consumer.poll_receive(cx, 3, &mut none))).await;
    assert!(waits.is_pending(), "nothing was sent");
    let sender = lab.clone();
    let published = tokio::spawn(async move { sender.publish(queue, messages(count)).await });
    let (mut seen, mut settled, mut cancelled) = (Vec::new(), Vec::new(), 0_u32);
    let end = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < count {
        lab.step(format!("{} of {count}, {cancelled} cancelled", seen.len()));
        assert!(tokio::time::Instant::now() < end, "{} of {count} came", seen.len());
        let mut out = Vec::new();
        {
            // Polled once and dropped: whatever it had begun must not be lost with it.
            let mut receive = pin!(poll_fn(|cx| consumer.poll_receive(cx, 3, &mut out)));
            let polled = poll_fn(|cx| Poll::Ready(receive.as_mut().poll(cx))).await;
            if polled.is_pending() {
                cancelled += 1;
                let grace = Duration::from_micros(u64::from(cancelled % 7) * 100);
                let _ = tokio::time::timeout(grace, receive).await;
            }
        }
        for delivery in out {
            seen.push(delivery.envelope().id.clone());
            settled.push(delivery.settle(Outcome::Ack));
        }
    }
    published.await??;
    for confirmation in settled {
        confirmation.await?;
    }
    assert!(cancelled > 0, "no receive was cancelled");
    assert_eq!(sorted(seen), ids(count));
    Ok(())
}

async fn a_closed_consumer_gives_back_what_it_did_not_hand_out(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(40)).await?;
    let mut first = lab.consume(&subscription).await?;
    settle_all(first.take(1).await?, &Outcome::Ack).await?;
    first.close().await?;
    lab.step("another consumer");
    let mut second = lab.consume(&subscription).await?;
    let rest = second.take(39).await?;
    let attempts: Vec<_> = rest.iter().map(anybroker_core::Delivery::attempt).collect();
    settle_all(rest, &Outcome::Ack).await?;
    assert_eq!(attempts, [1; 39], "what no handler saw is no attempt");
    second.quiet(QUIET).await
}

async fn a_dropped_consumer_gives_back_what_it_held(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(40)).await?;
    let mut first = lab.consume(&subscription).await?;
    let held = first.take(10).await?;
    drop(first.into_consumer());
    drop(held);
    lab.step("another consumer");
    let mut second = lab.consume(&subscription).await?;
    assert_eq!(second.ack(40).await?, ids(40));
    second.quiet(QUIET).await
}

async fn closing_waits_for_settlements(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(40)).await?;
    let other = lab.reconnected().await?;
    let mut first = other.consume(&subscription).await?;
    let mut confirmations = Vec::new();
    for delivery in first.take(40).await? {
        confirmations.push(delivery.settle(Outcome::Ack));
    }
    first.close().await?;
    other.broker().close().await?;
    for confirmation in confirmations {
        confirmation.await?;
    }
    lab.step("nothing comes back");
    lab.consume(&subscription).await?.quiet(QUIET).await
}

async fn a_consumer_of_a_closed_broker_ends(lab: Lab) -> Checked {
    let subscription = Subscription::queue(lab::queue());
    let other = lab.reconnected().await?;
    let mut consumer = other.broker().consume(&subscription, 4).await?;
    other.broker().close().await?;
    let mut out = Vec::new();
    refused(ErrorKind::Closed, poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out))).await?;
    tokio::time::timeout(PATIENCE, consumer.close()).await.map_err(|_| "close hangs")?.ok();
    Ok(())
}

async fn a_renewed_lease_keeps_the_delivery(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let mut first = lab.consume(&subscription).await?;
    let delivery = first.next().await?;
    let (settler, lease) = first.lease().ok_or("leased, but the consumer has no lease")?;
    assert!(lease <= Duration::from_secs(2), "asked for 1 s, got {lease:?}");
    let other = lab.reconnected().await?;
    let mut second = other.consume(&subscription).await?;
    for round in 0..8 {
        lab.step(format!("renewed {round} times"));
        second.quiet(lease / 3).await?;
        first.quiet(Duration::ZERO).await?;
        settler.renew(&[delivery.tag()]).await?;
    }
    delivery.settle(Outcome::Ack).await?;
    second.quiet(lease + QUIET).await
}

async fn a_lease_that_ran_out_gives_the_delivery_to_another(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, messages(1)).await?;
    let mut first = lab.consume(&subscription).await?;
    let stale = first.next().await?;
    let other = lab.reconnected().await?;
    let mut second = other.consume(&subscription).await?;
    let fresh = second.next().await?;
    if lab.broker().capabilities().counts_crashes {
        assert_eq!(fresh.attempt(), 2);
    }
    lab.step("the late settlement is refused and settles nothing");
    refused(ErrorKind::StaleDelivery, stale.settle(Outcome::Ack)).await?;
    fresh.settle(Outcome::Retry { after: Duration::ZERO }).await?;
    drop(first);
    second.ack(1).await?;
    second.quiet(QUIET).await
}

async fn without_leases_there_is_nothing_to_renew(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(1)).await?;
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    assert!(receiver.lease().is_none(), "the capabilities say that deliveries are not leased");
    receiver.ack(1).await?;
    Ok(())
}
