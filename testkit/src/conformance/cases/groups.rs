//! Who gets a message: one consumer of each group.

use std::time::Duration;

use anybroker_core::{ErrorKind, Outcome, Start, Subscription};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, ids_of, message, messages, refused, sorted};
use crate::conformance::receiver::{Receiver, settle_all};

cases! {
    a_queue_keeps_what_was_sent_before_its_first_consumer;
    competing_consumers_get_each_message_once;
    any_number_of_processes_shares_a_group: Need::Of(
        |can| can.shares_partitions,
        "a partition is one process's",
    );
    processes_beyond_the_partitions_stand_by: Need::Of(
        |can| !can.shares_partitions,
        "any number of processes shares a group",
    );
    each_group_gets_its_own_copy: Need::TOPICS;
    a_group_keeps_what_was_published_before_its_consumers_came;
    a_new_group_starts_with_what_comes_after_it: Need::TOPICS;
    a_group_from_the_earliest_gets_what_the_topic_keeps: Need::Of(
        |can| can.topics && can.start_earliest,
        "a group cannot start at messages published before it",
    );
    start_earliest_is_unsupported: Need::Of(
        |can| can.topics && !can.start_earliest,
        "there are no topics, or a group can start at the earliest message",
    );
    groups_of_one_name_on_two_topics_do_not_meet: Need::TOPICS;
    declaring_again_changes_nothing;
}

async fn a_queue_keeps_what_was_sent_before_its_first_consumer(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(10)).await?;
    lab.step("consume on another connection");
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&Subscription::queue(queue)).await?;
    assert_eq!(receiver.ack(10).await?, ids(10));
    receiver.quiet(QUIET).await
}

async fn competing_consumers_get_each_message_once(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("one");
    let mut first = lab.consume(&subscription).await?;
    let other = lab.reconnected().await?;
    let mut second = other.consume(&subscription).await?;
    let count = 100;
    lab.publish(destination, messages(count)).await?;
    let (mut seen, mut by_first, mut by_second) = (Vec::new(), 0, 0);
    while seen.len() < count {
        lab.step(format!("{} of {count}: {by_first} and {by_second}", seen.len()));
        let delivery = tokio::select! {
            delivery = first.next() => { by_first += 1; delivery? }
            delivery = second.next() => { by_second += 1; delivery? }
        };
        seen.push(delivery.envelope().id.clone());
        delivery.settle(Outcome::Ack).await?;
    }
    assert_eq!(sorted(seen), ids(count));
    first.quiet(QUIET).await?;
    second.quiet(QUIET).await
}

async fn any_number_of_processes_shares_a_group(lab: Lab) -> Checked {
    let queue = lab::queue().partitions(1);
    let subscription = Subscription::queue(queue.clone());
    let mut held = Vec::new();
    lab.publish(queue, messages(3)).await?;
    for number in 0..3 {
        lab.step(format!("process {number}"));
        let other = lab.reconnected().await?;
        let mut receiver = Receiver::open(other.broker(), &subscription, 1).await?;
        held.push((receiver.next().await?, receiver));
    }
    for (delivery, _receiver) in held {
        delivery.settle(Outcome::Ack).await?;
    }
    Ok(())
}

async fn processes_beyond_the_partitions_stand_by(lab: Lab) -> Checked {
    let queue = lab::queue().partitions(1);
    let subscription = Subscription::queue(queue.clone());
    // In one process any number of consumers shares a partition.
    let mut receivers = Vec::new();
    for _ in 0..3 {
        receivers.push(Receiver::open(lab.broker(), &subscription, 1).await?);
    }
    lab.publish(queue.clone(), messages(3)).await?;
    let mut held = Vec::new();
    for receiver in &mut receivers {
        held.push(receiver.next().await?);
    }
    assert_eq!(ids_of(&held), ids(3));
    settle_all(held, &Outcome::Ack).await?;
    lab.step("one beyond");
    let other = lab.reconnected().await?;
    let mut beyond = other.consume(&subscription).await?;
    lab.publish(queue, messages(1)).await?;
    lab.step("whoever has the partition by now, it goes to the other one");
    for receiver in receivers {
        receiver.close().await?;
    }
    assert_eq!(beyond.ack(1).await?, ids(1));
    Ok(())
}

async fn each_group_gets_its_own_copy(lab: Lab) -> Checked {
    let topic = lab::topic();
    let mut receivers = Vec::new();
    for group in ["email", "billing", "audit"] {
        let subscription = Subscription::topic(topic.clone()).group(group);
        receivers.push(lab.consume(&subscription).await?);
    }
    lab.publish(topic, messages(20)).await?;
    for receiver in &mut receivers {
        assert_eq!(receiver.ack(20).await?, ids(20));
    }
    for receiver in &mut receivers {
        receiver.quiet(QUIET).await?;
    }
    Ok(())
}

async fn a_group_keeps_what_was_published_before_its_consumers_came(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("late");
    lab.step("declare, publish, then the first consumer");
    lab.broker().declare(&subscription).await?;
    lab.publish(destination.clone(), messages(10)).await?;
    let mut first = lab.consume(&subscription).await?;
    let held = first.take(10).await?;
    assert_eq!(ids_of(&held), ids(10));
    drop(held);
    first.close().await?;
    lab.step("the second consumer gets what the first left");
    lab.publish(destination, (10..20).map(|number| message(&format!("m{number}")))).await?;
    let other = lab.reconnected().await?;
    let mut second = other.consume(&subscription).await?;
    assert_eq!(second.ack(20).await?, ids(20));
    second.quiet(QUIET).await
}

async fn a_new_group_starts_with_what_comes_after_it(lab: Lab) -> Checked {
    let topic = lab::topic();
    let early = Subscription::topic(topic.clone()).group("early");
    lab.broker().declare(&early).await?;
    lab.publish(topic.clone(), [message("before")]).await?;
    let late = Subscription::topic(topic.clone()).group("late");
    lab.broker().declare(&late).await?;
    lab.publish(topic, [message("after")]).await?;
    let mut receiver = lab.consume(&late).await?;
    assert_eq!(receiver.ack(1).await?, ["after"]);
    receiver.quiet(QUIET).await?;
    assert_eq!(lab.consume(&early).await?.ack(2).await?, ["after", "before"]);
    Ok(())
}

async fn a_group_from_the_earliest_gets_what_the_topic_keeps(lab: Lab) -> Checked {
    let topic = lab::topic();
    lab.broker().declare(&Subscription::topic(topic.clone()).group("early")).await?;
    lab.publish(topic.clone(), messages(5)).await?;
    let late = Subscription::topic(topic).group("late").start(Start::Earliest);
    let mut receiver = lab.consume(&late).await?;
    assert_eq!(receiver.ack(5).await?, ids(5));
    receiver.quiet(QUIET).await
}

async fn start_earliest_is_unsupported(lab: Lab) -> Checked {
    let subscription = Subscription::topic(lab::topic()).group("late").start(Start::Earliest);
    refused(ErrorKind::Unsupported, lab.broker().declare(&subscription)).await?;
    refused(ErrorKind::Unsupported, lab.broker().consume(&subscription, 1)).await?;
    Ok(())
}

async fn groups_of_one_name_on_two_topics_do_not_meet(lab: Lab) -> Checked {
    let (one, two) = (lab::topic(), lab::topic());
    let mut of_one = lab.consume(&Subscription::topic(one.clone()).group("same")).await?;
    let mut of_two = lab.consume(&Subscription::topic(two.clone()).group("same")).await?;
    lab.publish(one, [message("one")]).await?;
    lab.publish(two, [message("two")]).await?;
    assert_eq!(of_one.ack(1).await?, ["one"]);
    assert_eq!(of_two.ack(1).await?, ["two"]);
    of_one.quiet(QUIET).await?;
    of_two.quiet(Duration::ZERO).await
}

async fn declaring_again_changes_nothing(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (destination, group) = lab.group("one");
    let subscriptions = [Subscription::queue(queue.clone()), group];
    for round in 0..3 {
        lab.step(format!("round {round}"));
        let other = lab.reconnected().await?;
        other.broker().declare_destination(&queue.clone().into()).await?;
        other.broker().declare_destination(&destination).await?;
        for subscription in &subscriptions {
            other.broker().declare(subscription).await?;
        }
        other.publish(queue.clone(), [message(&format!("m{round}"))]).await?;
        other.publish(destination.clone(), [message(&format!("m{round}"))]).await?;
    }
    for subscription in &subscriptions {
        let mut receiver = lab.consume(subscription).await?;
        assert_eq!(receiver.ack(3).await?, ids(3));
        receiver.quiet(QUIET).await?;
    }
    Ok(())
}
