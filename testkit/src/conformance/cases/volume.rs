//! Many at once, and how many there are.

use std::time::Duration;

use anybroker_core::{Outcome, Outgoing, Subscription};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, PATIENCE, QUIET, ids, message, messages, sorted};
use crate::conformance::receiver::Receiver;

cases! {
    a_thousand_subscriptions_share_a_connection: Need::Alone, within 150;
    many_senders_and_consumers_exchange_the_exact_set, within 120;
    a_publish_goes_on_when_nobody_awaits_it;
    closing_flushes_what_was_accepted;
    depth_counts_ready_in_flight_delayed_and_dead;
}

async fn many_senders_and_consumers_exchange_the_exact_set(lab: Lab) -> Checked {
    const SENDERS: usize = 50;
    const EACH: usize = 100;
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (seen, mut sightings) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for consumer in 0..10 {
        // Half of them share the connection, the others have their own.
        let lab = if consumer % 2 == 0 { lab.clone() } else { lab.reconnected().await? };
        let mut receiver = lab.consume(&subscription).await?;
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Ok(delivery) = receiver.next().await {
                let id = delivery.envelope().id.clone();
                if delivery.settle(Outcome::Ack).await.is_ok() && seen.send(id).is_err() {
                    break;
                }
            }
        });
    }
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let (lab, queue) = (lab.clone(), queue.clone());
        senders.spawn(async move {
            let producer = lab.broker().producer();
            for number in 0..EACH {
                let envelope = message(&format!("m{}", sender * EACH + number));
                producer.send(Outgoing::new(queue.clone(), envelope)).await?;
            }
            Ok::<_, anybroker_core::Error>(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let mut all = Vec::new();
    while all.len() < SENDERS * EACH {
        lab.step(format!("{} of {} received", all.len(), SENDERS * EACH));
        let id = tokio::time::timeout(PATIENCE, sightings.recv()).await?;
        all.push(id.ok_or("all consumers ended")?);
    }
    assert_eq!(sorted(all), ids(SENDERS * EACH));
    lab.step("nothing comes twice");
    match tokio::time::timeout(QUIET, sightings.recv()).await {
        Ok(id) => Err(format!("{id:?} came twice").into()),
        Err(_elapsed) => Ok(()),
    }
}

async fn a_publish_goes_on_when_nobody_awaits_it(lab: Lab) -> Checked {
    let queue = lab::queue();
    let producer = lab.broker().producer();
    for envelope in messages(200) {
        drop(producer.send(Outgoing::new(queue.clone(), envelope)));
    }
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    assert_eq!(receiver.ack(200).await?, ids(200));
    Ok(())
}

async fn closing_flushes_what_was_accepted(lab: Lab) -> Checked {
    let queue = lab::queue();
    let other = lab.reconnected().await?;
    other.broker().declare_destination(&queue.clone().into()).await?;
    let producer = other.broker().producer();
    let sends: Vec<_> = messages(200)
        .map(|envelope| producer.send(Outgoing::new(queue.clone(), envelope)))
        .collect();
    other.broker().close().await?;
    for (index, send) in sends.into_iter().enumerate() {
        lab.step(format!("answer {index}"));
        tokio::time::timeout(PATIENCE, send).await??;
    }
    lab.step("all are there");
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    assert_eq!(receiver.ack(200).await?, ids(200));
    receiver.quiet(QUIET).await
}

async fn depth_counts_ready_in_flight_delayed_and_dead(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.broker().declare(&subscription).await?;
    // Two of them every broker can tell.
    let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
    let counts = |value: Option<u64>, expected| value == Some(expected);
    lab.depth(&subscription, "empty", |depth| {
        counts(depth.ready, 0)
            && is(depth.in_flight, 0)
            && is(depth.delayed, 0)
            && counts(depth.dead_lettered, 0)
    })
    .await?;
    lab.publish(queue.clone(), messages(5)).await?;
    lab.depth(&subscription, "five ready", |depth| {
        counts(depth.ready, 5) && is(depth.in_flight, 0)
    })
    .await?;
    let mut receiver = Receiver::open(lab.broker(), &subscription, 2).await?;
    let mut held = receiver.take(2).await?;
    lab.depth(&subscription, "two in flight", |depth| {
        counts(depth.ready, 3) && is(depth.in_flight, 2)
    })
    .await?;
    held.remove(0).settle(Outcome::dead_letter("test", "")).await?;
    held.remove(0).settle(Outcome::Retry { after: Duration::from_secs(30) }).await?;
    let held = receiver.take(2).await?;
    let outgoing = Outgoing::new(queue, message("later")).with_delay(Duration::from_secs(30));
    lab.broker().producer().send(outgoing).await?;
    lab.depth(&subscription, "one ready, two in flight, two delayed, one dead", |depth| {
        counts(depth.ready, 1)
            && is(depth.in_flight, 2)
            && is(depth.delayed, 2)
            && counts(depth.dead_lettered, 1)
    })
    .await?;
    drop(held);
    Ok(())
}

async fn a_thousand_subscriptions_share_a_connection(lab: Lab) -> Checked {
    const SUBSCRIPTIONS: usize = 1000;
    const QUEUES: usize = 20;
    // Fewer queues than consumers: what must scale is the connection, not the broker's disk.
    let queues: Vec<_> = (0..QUEUES).map(|_| lab::queue()).collect();
    // All are held until the last one has come, and nobody renews them.
    let subscription = |queue| Subscription::queue(queue).lease(Duration::from_mins(2));
    for queue in &queues {
        lab.broker().declare(&subscription(queue.clone())).await?;
    }
    let mut opening = JoinSet::new();
    for index in 0..SUBSCRIPTIONS {
        let (lab, queue) = (lab.clone(), queues[index % QUEUES].clone());
        opening.spawn(async move { Receiver::open(lab.broker(), &subscription(queue), 1).await });
    }
    let mut receivers = Vec::new();
    while let Some(opened) = opening.join_next().await {
        receivers.push(opened??);
        lab.step(format!("{} of {SUBSCRIPTIONS} open", receivers.len()));
    }
    lab.step("one message for each");
    for (index, queue) in queues.iter().enumerate() {
        let per_queue = SUBSCRIPTIONS / QUEUES;
        let range = index * per_queue..(index + 1) * per_queue;
        lab.publish(queue.clone(), range.map(|number| message(&format!("m{number}")))).await?;
    }
    let mut receiving = JoinSet::new();
    for mut receiver in receivers {
        // With a prefetch of 1 and nothing acknowledged, each message goes to another consumer.
        receiving.spawn(async move {
            let delivery = receiver.next().await;
            (delivery, receiver)
        });
    }
    let (mut held, mut open) = (Vec::new(), Vec::new());
    while let Some(received) = receiving.join_next().await {
        let (delivery, receiver) = received?;
        held.push(delivery?);
        open.push(receiver);
        lab.step(format!("{} of {SUBSCRIPTIONS} received", held.len()));
    }
    assert_eq!(crate::conformance::lab::ids_of(&held), ids(SUBSCRIPTIONS));
    crate::conformance::receiver::settle_all(held, &Outcome::Ack).await
}
