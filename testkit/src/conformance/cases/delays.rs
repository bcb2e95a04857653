//! Delays that the broker keeps: never early, at most a second late, and in nobody's way.

use std::collections::HashMap;
use std::time::Duration;

use anybroker_core::{Confirmation, Error, Outcome, Outgoing, Subscription};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages};
use crate::conformance::process::Process;
use crate::conformance::receiver::Receiver;

cases! {
    a_delayed_publish_is_neither_early_nor_late;
    a_retry_is_neither_early_nor_late;
    a_release_is_neither_early_nor_late;
    a_longer_delay_blocks_no_shorter_one;
    a_delayed_publish_reaches_every_group_once: Need::TOPICS;
    a_delayed_retry_reaches_only_its_own_group: Need::TOPICS;
    a_delayed_retry_blocks_nobody;
    delayed_messages_outlive_their_connection;
}

/// How late a delayed message may be.
const LATE: Duration = Duration::from_secs(1);

/// Delays below, between and above the tiers that brokers round to.
const DELAYS: [u64; 6] = [50, 400, 1000, 1700, 3300, 6200];

fn delay_of(id: &str) -> Duration {
    Duration::from_millis(id.parse().unwrap_or_default())
}

/// Operations that each delay the message whose id is the delay: when they were called, and when
/// the broker had them.
#[derive(Default)]
struct Delayed {
    called: HashMap<String, Instant>,
    confirming: JoinSet<Result<(String, Instant), Error>>,
}

impl Delayed {
    fn call(&mut self, id: &str, operation: impl FnOnce() -> Confirmation) {
        self.called.insert(id.to_owned(), Instant::now());
        let (confirmation, id) = (operation(), id.to_owned());
        self.confirming.spawn(async move { confirmation.await.map(|()| (id, Instant::now())) });
    }

    /// Receives each message, and checks that it came in its time.
    async fn come_in_time(mut self, lab: &Lab, receiver: &mut Receiver, attempt: u32) -> Checked {
        let mut came = HashMap::new();
        while came.len() < self.called.len() {
            lab.step(format!("{} of {} came", came.len(), self.called.len()));
            let delivery = receiver.next().await?;
            came.insert(delivery.envelope().id.clone(), Instant::now());
            assert_eq!(delivery.attempt(), attempt);
            delivery.settle(Outcome::Ack).await?;
        }
        while let Some(confirmed) = self.confirming.join_next().await {
            let (id, confirmed) = confirmed??;
            let came = *came.get(&id).ok_or_else(|| format!("{id} did not come"))?;
            let (delay, since) = (delay_of(&id), came - self.called[&id]);
            assert!(since >= delay, "{id} ms is early: {since:?} after the call");
            let since = came.saturating_duration_since(confirmed);
            assert!(since <= delay + LATE, "{id} ms is late: {since:?} after its confirmation");
        }
        receiver.quiet(QUIET).await
    }
}

async fn a_delayed_publish_is_neither_early_nor_late(lab: Lab) -> Checked {
    let queue = lab::queue();
    let mut receiver = lab.consume(&Subscription::queue(queue.clone())).await?;
    let producer = lab.broker().producer();
    let mut delayed = Delayed::default();
    for delay in DELAYS {
        let id = delay.to_string();
        let outgoing = Outgoing::new(queue.clone(), message(&id)).with_delay(delay_of(&id));
        delayed.call(&id, || producer.send(outgoing));
    }
    delayed.come_in_time(&lab, &mut receiver, 1).await
}

async fn a_retry_is_neither_early_nor_late(lab: Lab) -> Checked {
    settled(lab, |after| Outcome::Retry { after }, 2).await
}

async fn a_release_is_neither_early_nor_late(lab: Lab) -> Checked {
    settled(lab, |after| Outcome::Release { after }, 1).await
}

async fn settled(lab: Lab, outcome: fn(Duration) -> Outcome, attempt: u32) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), DELAYS.map(|delay| message(&delay.to_string()))).await?;
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    let mut delayed = Delayed::default();
    for delivery in receiver.take(DELAYS.len()).await? {
        let id = delivery.envelope().id.clone();
        delayed.call(&id, || delivery.settle(outcome(delay_of(&id))));
    }
    delayed.come_in_time(&lab, &mut receiver, attempt).await
}

async fn a_longer_delay_blocks_no_shorter_one(lab: Lab) -> Checked {
    let queue = lab::queue();
    let mut receiver = lab.consume(&Subscription::queue(queue.clone())).await?;
    let producer = lab.broker().producer();
    let mut delayed = Delayed::default();
    // Of one tier, the longest first: a queue that expires only at its head would hold back the
    // others.
    for delay in [3900_u64, 2100, 3000, 1900, 1100] {
        let id = delay.to_string();
        let outgoing = Outgoing::new(queue.clone(), message(&id)).with_delay(delay_of(&id));
        delayed.call(&id, || producer.send(outgoing));
    }
    delayed.come_in_time(&lab, &mut receiver, 1).await
}

async fn a_delayed_publish_reaches_every_group_once(lab: Lab) -> Checked {
    let topic = lab::topic();
    let mut one = lab.consume(&Subscription::topic(topic.clone()).group("one")).await?;
    let mut two = lab.consume(&Subscription::topic(topic.clone()).group("two")).await?;
    let called = Instant::now();
    let delay = Duration::from_millis(1500);
    lab.broker().producer().send(Outgoing::new(topic, message("m0")).with_delay(delay)).await?;
    let confirmed = Instant::now();
    for receiver in [&mut one, &mut two] {
        let delivery = receiver.next().await?;
        let (since_call, since) = (called.elapsed(), confirmed.elapsed());
        assert!(since_call >= delay && since <= delay + LATE, "came after {since_call:?}");
        delivery.settle(Outcome::Ack).await?;
    }
    one.quiet(QUIET).await?;
    two.quiet(QUIET).await
}

async fn a_delayed_retry_reaches_only_its_own_group(lab: Lab) -> Checked {
    let topic = lab::topic();
    let mut retrying = lab.consume(&Subscription::topic(topic.clone()).group("retrying")).await?;
    let mut other = lab.consume(&Subscription::topic(topic.clone()).group("other")).await?;
    lab.publish(topic, messages(3)).await?;
    assert_eq!(other.ack(3).await?, ids(3));
    let after = Duration::from_millis(1500);
    for delivery in retrying.take(3).await? {
        delivery.settle(Outcome::Retry { after }).await?;
    }
    for delivery in retrying.take(3).await? {
        assert_eq!(delivery.attempt(), 2);
        delivery.settle(Outcome::Ack).await?;
    }
    other.quiet(QUIET).await?;
    retrying.quiet(QUIET).await
}

async fn a_delayed_retry_blocks_nobody(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let mut receiver = Receiver::open(lab.broker(), &subscription, 4).await?;
    lab.publish(queue.clone(), (0..8).map(|number| message(&format!("late{number}")))).await?;
    // More of them than the prefetch: they must hold no place while they wait.
    for _ in 0..8 {
        receiver.next().await?.settle(Outcome::Retry { after: Duration::from_secs(8) }).await?;
    }
    let sent = Instant::now();
    lab.publish(queue, messages(20)).await?;
    for _ in 0..20 {
        receiver.next().await?.settle(Outcome::Ack).await?;
    }
    let took = sent.elapsed();
    assert!(took < Duration::from_secs(5), "the others took {took:?}");
    Ok(())
}

async fn delayed_messages_outlive_their_connection(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let mut process = Process::start(&lab, &subscription).await?;
    lab.publish(queue.clone(), [message("retried")]).await?;
    let delivery = process.receiver.next().await?;
    delivery.settle(Outcome::Retry { after: Duration::from_secs(3) }).await?;
    let other = lab.connect().await?;
    let outgoing = Outgoing::new(queue, message("delayed")).with_delay(Duration::from_secs(2));
    other.producer().send(outgoing).await?;
    process.crash(Vec::new()).await?;
    other.close().await?;
    lab.step("wait for both");
    let mut receiver = lab.consume(&subscription).await?;
    assert_eq!(receiver.ack(2).await?, ["delayed", "retried"]);
    receiver.quiet(QUIET).await
}
