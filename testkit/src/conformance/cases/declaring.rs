//! Who declares: what is created, only looked for, or taken for granted; and what is there in
//! another shape.

use anybroker_core::{Destination, ErrorKind, Outgoing, Queue, Subscription, Topic};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages, refused};

cases! {
    another_shape_of_a_queue_is_a_mismatch;
    publishers_and_workers_of_a_queue_state_one_shape;
    publishers_and_workers_of_a_topic_state_one_shape: Need::TOPICS;
    another_shape_of_a_group_is_refused_or_harms_nothing: Need::TOPICS;
    a_queue_taken_for_a_topic_is_refused_or_harms_nothing: Need::TOPICS;
    a_native_name_works_or_is_refused;
    a_missing_destination_is_not_found: Need::Verifying;
    an_existing_destination_is_found: Need::Verifying;
    what_exists_is_used_undeclared: Need::Assuming;
    what_is_sent_undeclared_is_refused_or_kept: Need::Assuming;
}

async fn another_shape_of_a_queue_is_a_mismatch(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(1)).await?;
    let other = lab.reconnected().await?;
    let ordered = queue.clone().ordered();
    refused(ErrorKind::Mismatch, other.broker().declare_destination(&ordered.clone().into()))
        .await?;
    refused(ErrorKind::Mismatch, other.broker().declare(&Subscription::queue(ordered))).await?;
    lab.step("the queue is unharmed");
    assert_eq!(other.consume(&Subscription::queue(queue)).await?.ack(1).await?, ids(1));
    Ok(())
}

async fn publishers_and_workers_of_a_queue_state_one_shape(lab: Lab) -> Checked {
    one_shape(lab, || {
        let queue = lab::queue();
        let ordered = [2, 3].map(|count| queue.clone().ordered().partitions(count));
        let all = [queue].into_iter().chain(ordered);
        all.map(Subscription::queue).collect()
    })
    .await
}

async fn publishers_and_workers_of_a_topic_state_one_shape(lab: Lab) -> Checked {
    one_shape(lab, || {
        let topic = lab::topic();
        let ordered = [2, 3].map(|count| topic.clone().ordered().partitions(count));
        let all = [topic].into_iter().chain(ordered);
        all.map(|topic| Subscription::topic(topic).group("one")).collect()
    })
    .await
}

/// What is published in one shape and handled in another must not be confirmed and never arrive. Where
/// both shapes are one place, as an unordered and an ordered topic of Kafka are, it arrives.
async fn one_shape(lab: Lab, shapes: impl Fn() -> Vec<Subscription>) -> Checked {
    for first in 0..shapes().len() {
        let (shapes, other) = (shapes(), lab.reconnected().await?);
        lab.broker().declare(&shapes[first]).await?;
        let mut confirmed = Vec::new();
        for (number, shape) in shapes.iter().enumerate() {
            let (broker, destination) = (other.broker(), shape.destination().clone());
            lab.step(format!("{number} is published after {first} was declared"));
            let id = format!("m{number}");
            let message = message(&id).with_key("k");
            match broker.producer().send(Outgoing::new(destination, message)).await {
                Ok(()) => confirmed.push(id),
                sent if number == first => sent?,
                sent => drop(refused(ErrorKind::Mismatch, async { sent }).await?),
            }
            lab.step(format!("{number} is handled after {first} was declared"));
            match broker.consume(shape, 1).await {
                Ok(_) => {}
                consumed if number == first => drop(consumed?),
                consumed => drop(refused(ErrorKind::Mismatch, async { consumed }).await?),
            }
        }
        lab.step(format!("what was confirmed of {first} arrives"));
        let arrived = other.consume(&shapes[first]).await?.ack(confirmed.len()).await?;
        assert_eq!(arrived, confirmed);
        other.broker().close().await?;
    }
    Ok(())
}

/// Who stores no shape of a group cannot tell; then both must work.
async fn another_shape_of_a_group_is_refused_or_harms_nothing(lab: Lab) -> Checked {
    let topic = lab::topic();
    let group = Subscription::topic(topic.clone()).group("one");
    lab.broker().declare(&group).await?;
    lab.publish(topic.clone(), messages(1)).await?;
    let other = lab.reconnected().await?;
    let ordered = group.clone().ordered();
    match other.broker().declare(&ordered).await {
        Ok(()) => {
            let mut receiver = other.consume(&ordered).await?;
            assert_eq!(receiver.ack(1).await?, ids(1));
            receiver.close().await?;
            lab.publish(topic, messages(1)).await?;
        }
        Err(error) => {
            let text = error.to_string();
            match error.kind() {
                ErrorKind::Mismatch => assert!(text.contains("one"), "which group? {text}"),
                kind => assert_eq!(kind, ErrorKind::Unsupported, "{text}"),
            }
        }
    }
    lab.step("the group is unharmed");
    assert_eq!(other.consume(&group).await?.ack(1).await?, ids(1));
    Ok(())
}

/// Who stores queues and topics alike cannot tell.
async fn a_queue_taken_for_a_topic_is_refused_or_harms_nothing(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(1)).await?;
    let topic = Topic::new(Destination::from(queue.clone()).name().to_owned());
    let other = lab.reconnected().await?;
    for declared in [
        other.broker().declare_destination(&topic.clone().into()).await,
        other.broker().declare(&Subscription::topic(topic).group("one")).await,
    ] {
        if let Err(error) = declared {
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        }
    }
    lab.step("the queue is unharmed");
    assert_eq!(other.consume(&Subscription::queue(queue)).await?.ack(1).await?, ids(1));
    Ok(())
}

async fn a_native_name_works_or_is_refused(lab: Lab) -> Checked {
    let own = Destination::from(lab::queue()).name().replace('.', "_");
    for name in ["", "_a", ".A.b", "--a", " a b", "/a:{b}", "\u{0}a", "größe"] {
        let name = if name.is_empty() { String::new() } else { format!("{own}{name}") };
        lab.step(format!("native name {name:?}"));
        let queue = Queue::native(name);
        let is_refusal = |kind| matches!(kind, ErrorKind::Unsupported | ErrorKind::Invalid);
        let subscription = Subscription::queue(queue.clone());
        match lab.broker().declare(&subscription).await {
            Ok(()) => {
                lab.publish(queue, messages(1)).await?;
                assert_eq!(lab.consume(&subscription).await?.ack(1).await?, ids(1));
            }
            Err(error) => {
                assert!(is_refusal(error.kind()), "declare: {error:?}");
                let producer = lab.broker().producer();
                let Err(error) = producer.send(Outgoing::new(queue, message("m0"))).await else {
                    return Err("not declared, but published".into());
                };
                assert!(is_refusal(error.kind()), "publish: {error:?}");
            }
        }
    }
    Ok(())
}

async fn a_missing_destination_is_not_found(lab: Lab) -> Checked {
    let broker = lab.verifying().await?;
    let (queue, topic) = (lab::queue(), lab::topic());
    let producer = broker.producer();
    lab.step("declare");
    refused(ErrorKind::NotFound, broker.declare_destination(&queue.clone().into())).await?;
    refused(ErrorKind::NotFound, broker.declare(&Subscription::queue(queue.clone()))).await?;
    lab.step("publish");
    refused(ErrorKind::NotFound, producer.send(Outgoing::new(queue.clone(), message("m")))).await?;
    if broker.capabilities().topics {
        lab.step("a topic");
        let group = Subscription::topic(topic.clone()).group("one");
        refused(ErrorKind::NotFound, broker.declare(&group)).await?;
        refused(ErrorKind::NotFound, producer.send(Outgoing::new(topic, message("m")))).await?;
    }
    lab.step("consume");
    refused(ErrorKind::NotFound, broker.consume(&Subscription::queue(queue), 1)).await?;
    lab.step("the connection still works");
    broker.health().await?;
    broker.close().await?;
    Ok(())
}

async fn an_existing_destination_is_found(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (destination, group) = lab.group("one");
    lab.broker().declare_destination(&queue.clone().into()).await?;
    lab.broker().declare(&Subscription::queue(queue.clone())).await?;
    lab.broker().declare(&group).await?;
    lab.step("with verify");
    let broker = lab.verifying().await?;
    broker.declare_destination(&queue.clone().into()).await?;
    broker.declare(&group).await?;
    let producer = broker.producer();
    producer.send(Outgoing::new(queue.clone(), message("m0"))).await?;
    producer.send(Outgoing::new(destination, message("m0"))).await?;
    assert_eq!(lab.consume(&group).await?.ack(1).await?, ids(1));
    assert_eq!(lab.consume(&Subscription::queue(queue)).await?.ack(1).await?, ids(1));
    broker.close().await?;
    Ok(())
}

async fn what_exists_is_used_undeclared(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (destination, group) = lab.group("one");
    lab.broker().declare(&Subscription::queue(queue.clone())).await?;
    lab.broker().declare(&group).await?;
    let other = lab.on(lab.assuming().await?);
    for subscription in [Subscription::queue(queue.clone()), group] {
        other.broker().declare(&subscription).await?;
        other.publish(subscription.destination().clone(), messages(1)).await?;
        let mut receiver = other.consume(&subscription).await?;
        assert_eq!(receiver.ack(1).await?, ids(1));
        receiver.close().await?;
    }
    other.publish(destination, messages(1)).await?;
    other.broker().close().await?;
    Ok(())
}

async fn what_is_sent_undeclared_is_refused_or_kept(lab: Lab) -> Checked {
    let queue = lab::queue();
    let broker = lab.assuming().await?;
    let sent = broker.producer().send(Outgoing::new(queue.clone(), message("m0"))).await;
    lab.step(format!("the broker answered {sent:?}"));
    broker.close().await?;
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    if sent.is_ok() {
        assert_eq!(receiver.ack(1).await?, ids(1));
    }
    receiver.quiet(QUIET).await
}
