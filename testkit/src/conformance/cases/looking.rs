//! Who only looks makes nothing: only a worker, a publisher and `declare` create.

use anybroker_core::{DeadLetterFilter, ErrorKind, Redrive, Subscription};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages, refused};

cases! {
    looking_for_a_queue_that_does_not_exist_makes_none;
    looking_for_a_group_that_does_not_exist_makes_none: Need::TOPICS;
    looking_makes_nothing_that_others_find: Need::Verifying;
    looking_undeclared_works_and_makes_nothing: Need::Assuming;
}

/// Looks in every way there is, twice: what the first look made, the second one finds.
async fn look_in_vain(lab: &Lab, subscription: &Subscription) -> Checked {
    let (broker, filter) = (lab.broker(), DeadLetterFilter::all());
    for round in ["first", "second"] {
        lab.step(format!("{round} look for {subscription:?}: dead letters"));
        refused(ErrorKind::NotFound, broker.dead_letters(subscription, &filter, 10)).await?;
        lab.step(format!("{round} look for {subscription:?}: redrive"));
        refused(ErrorKind::NotFound, broker.redrive(subscription, &Redrive::all())).await?;
        lab.step(format!("{round} look for {subscription:?}: purge"));
        refused(ErrorKind::NotFound, broker.purge_dead_letters(subscription)).await?;
        lab.step(format!("{round} look for {subscription:?}: depth"));
        refused(ErrorKind::NotFound, broker.depth(subscription)).await?;
    }
    Ok(())
}

async fn looking_for_a_queue_that_does_not_exist_makes_none(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    look_in_vain(&lab, &subscription).await?;
    look_in_vain(&lab.reconnected().await?, &subscription).await?;
    lab.step("the name is free for another shape");
    let ordered = queue.ordered();
    let subscription = Subscription::queue(ordered.clone());
    lab.publish(ordered, messages(1)).await?;
    assert_eq!(lab.consume(&subscription).await?.ack(1).await?, ids(1));
    Ok(())
}

/// A group that a look had made would collect each event from then on.
async fn looking_for_a_group_that_does_not_exist_makes_none(lab: Lab) -> Checked {
    let topic = lab::topic();
    let group = |name| Subscription::topic(topic.clone()).group(name);
    lab.step("without the topic");
    look_in_vain(&lab, &group("one")).await?;
    lab.step("with the topic, and another group of it");
    lab.broker().declare(&group("other")).await?;
    look_in_vain(&lab, &group("one")).await?;
    lab.publish(topic.clone(), [message("before")]).await?;
    lab.broker().declare(&group("one")).await?;
    lab.publish(topic.clone(), [message("after")]).await?;
    let mut receiver = lab.consume(&group("one")).await?;
    assert_eq!(receiver.ack(1).await?, ["after"]);
    receiver.quiet(QUIET).await
}

async fn looking_makes_nothing_that_others_find(lab: Lab) -> Checked {
    let (_destination, group) = lab.group("one");
    let queue = Subscription::queue(lab::queue());
    let verifying = lab.verifying().await?;
    for subscription in [&queue, &group] {
        look_in_vain(&lab, subscription).await?;
        lab.step(format!("{subscription:?} with verify"));
        refused(ErrorKind::NotFound, verifying.declare(subscription)).await?;
        look_in_vain(&lab.on(verifying.clone()), subscription).await?;
    }
    verifying.close().await?;
    Ok(())
}

async fn looking_undeclared_works_and_makes_nothing(lab: Lab) -> Checked {
    let assuming = lab.on(lab.assuming().await?);
    let (destination, group) = lab.group("one");
    look_in_vain(&assuming, &group).await?;
    lab.broker().declare(&group).await?;
    lab.publish(destination, messages(1)).await?;
    assuming.depth(&group, "one message", |depth| depth.ready == Some(1)).await?;
    let (broker, filter) = (assuming.broker(), DeadLetterFilter::all());
    assert!(broker.dead_letters(&group, &filter, 10).await?.entries.is_empty());
    assert_eq!(broker.redrive(&group, &Redrive::all()).await?, 0);
    assert_eq!(broker.purge_dead_letters(&group).await?, 0);
    broker.close().await?;
    Ok(())
}
