//! What cannot work is an error of its own kind, and harms nothing else.

use std::time::Duration;

use anybroker_core::{
    Destination, Envelope, ErrorKind, Outcome, Outgoing, Queue, Subscription, Topic,
};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages, refused};

cases! {
    publishing_to_a_topic_without_groups_is_unroutable: Need::Of(
        |can| can.detects_unrouted,
        "publishing to a topic without groups is not seen",
    );
    publishing_to_a_topic_without_groups_is_not_seen: Need::Of(
        |can| can.topics && !can.detects_unrouted,
        "there are no topics, or publishing to one without groups is seen, or it keeps the message",
    );
    without_topics_they_are_unsupported: Need::Of(|can| !can.topics, "there are topics");
    unrouted_messages_may_be_allowed: Need::TOPICS;
    unroutable_messages_between_others_are_told_apart: Need::TOPICS;
    the_largest_payload_passes_and_one_byte_more_does_not;
    names_that_break_the_rules_are_refused;
    a_subscription_that_makes_no_sense_is_refused;
    a_closed_broker_says_so;
    a_healthy_broker_says_so;
}

async fn publishing_to_a_topic_without_groups_is_unroutable(lab: Lab) -> Checked {
    let topic = lab::topic();
    let producer = lab.broker().producer();
    let error =
        refused(ErrorKind::Unroutable, producer.send(Outgoing::new(topic.clone(), message("m0"))))
            .await?;
    assert_eq!(error.retry_class(), anybroker_core::RetryClass::Permanent);
    lab.step("once it has a group it works");
    let mut receiver = lab.consume(&Subscription::topic(topic.clone()).group("one")).await?;
    lab.publish(topic, [message("m1")]).await?;
    assert_eq!(receiver.ack(1).await?, ["m1"]);
    receiver.quiet(QUIET).await
}

async fn publishing_to_a_topic_without_groups_is_not_seen(lab: Lab) -> Checked {
    lab.publish(lab::topic(), [message("m0")]).await
}

async fn without_topics_they_are_unsupported(lab: Lab) -> Checked {
    let topic = lab::topic();
    let group = Subscription::topic(topic.clone()).group("one");
    let producer = lab.broker().producer();
    lab.step("publish");
    refused(ErrorKind::Unsupported, producer.send(Outgoing::new(topic.clone(), message("m0"))))
        .await?;
    lab.step("declare");
    refused(ErrorKind::Unsupported, lab.broker().declare_destination(&topic.into())).await?;
    refused(ErrorKind::Unsupported, lab.broker().declare(&group)).await?;
    lab.step("consume");
    refused(ErrorKind::Unsupported, lab.broker().consume(&group, 1)).await?;
    refused(ErrorKind::Unsupported, lab.broker().depth(&group)).await?;
    Ok(())
}

async fn unrouted_messages_may_be_allowed(lab: Lab) -> Checked {
    let mut outgoing = Outgoing::new(lab::topic(), message("m0"));
    outgoing.allow_unrouted = true;
    lab.broker().producer().send(outgoing).await?;
    Ok(())
}

async fn unroutable_messages_between_others_are_told_apart(lab: Lab) -> Checked {
    let (routed, unrouted) = (lab::topic(), lab::topic());
    let seen = lab.broker().capabilities().detects_unrouted;
    let mut receiver = lab.consume(&Subscription::topic(routed.clone()).group("one")).await?;
    let producer = lab.broker().producer();
    let mut sends = Vec::new();
    for envelope in messages(400) {
        sends.push((true, producer.send(Outgoing::new(routed.clone(), envelope.clone()))));
        sends.push((false, producer.send(Outgoing::new(unrouted.clone(), envelope))));
    }
    for (index, (is_routed, send)) in sends.into_iter().enumerate() {
        lab.step(format!("answer {index}"));
        if is_routed {
            send.await?;
        } else if seen {
            refused(ErrorKind::Unroutable, send).await?;
        }
    }
    assert_eq!(receiver.ack(400).await?, ids(400));
    receiver.quiet(QUIET).await
}

async fn the_largest_payload_passes_and_one_byte_more_does_not(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let largest = lab.broker().capabilities().max_payload;
    let payload: Vec<u8> =
        (0..largest).map(|index| b'a' + u8::try_from(index % 23).unwrap_or(0)).collect();
    let envelope = Envelope::new("large", payload).with_content_type("text/plain");
    lab.step(format!("{largest} bytes"));
    lab.publish(queue.clone(), [envelope.clone()]).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let delivery = receiver.next().await?;
    assert!(**delivery.envelope() == envelope, "the payload arrived changed");
    lab.step("room for what a retry and a dead letter add");
    delivery.settle(Outcome::Retry { after: Duration::from_millis(1100) }).await?;
    receiver.next().await?.settle(Outcome::dead_letter("test", "e".repeat(4096))).await?;
    let filter = anybroker_core::DeadLetterFilter::all();
    let found = lab.broker().dead_letters(&subscription, &filter, 1).await?.entries;
    assert!(found.first().is_some_and(|entry| *entry.envelope == envelope));
    lab.step("one byte more");
    let envelope = Envelope::new("too.large", vec![b'a'; largest + 1]);
    let producer = lab.broker().producer();
    refused(ErrorKind::TooLarge, producer.send(Outgoing::new(queue.clone(), envelope))).await?;
    lab.step("the producer still works");
    lab.publish(queue, [message("m0")]).await?;
    assert_eq!(receiver.ack(1).await?, ["m0"]);
    Ok(())
}

async fn names_that_break_the_rules_are_refused(lab: Lab) -> Checked {
    let long = "x".repeat(65);
    for name in ["", "a--b", "-a", "a.", ".a", "a-", "a_b", "a b", "größe", "a/b", "a.fifo", &long]
    {
        lab.step(format!("name {name:?}"));
        let (queue, topic) = (Queue::new(name.to_owned()), Topic::new(name.to_owned()));
        let producer = lab.broker().producer();
        for destination in [Destination::from(queue.clone()), Destination::from(topic.clone())] {
            refused(ErrorKind::Invalid, lab.broker().declare_destination(&destination)).await?;
            refused(ErrorKind::Invalid, producer.send(Outgoing::new(destination, message("m"))))
                .await?;
        }
        for subscription in [
            Subscription::queue(queue),
            Subscription::topic(topic).group("one"),
            Subscription::topic(lab::topic()).group(name.to_owned()),
        ] {
            refused(ErrorKind::Invalid, lab.broker().declare(&subscription)).await?;
            refused(ErrorKind::Invalid, lab.broker().consume(&subscription, 1)).await?;
        }
    }
    Ok(())
}

async fn a_subscription_that_makes_no_sense_is_refused(lab: Lab) -> Checked {
    for subscription in [
        Subscription::topic(lab::topic()),
        Subscription::queue(lab::queue()).group("one"),
        Subscription::queue(lab::queue()).ordered(),
    ] {
        lab.step(format!("{subscription:?}"));
        refused(ErrorKind::Invalid, lab.broker().declare(&subscription)).await?;
        refused(ErrorKind::Invalid, lab.broker().consume(&subscription, 1)).await?;
    }
    Ok(())
}

async fn a_closed_broker_says_so(lab: Lab) -> Checked {
    let (queue, subscription) = (lab::queue(), Subscription::queue(lab::queue()));
    let broker = lab.connect().await?;
    let producer = broker.producer();
    broker.close().await?;
    refused(ErrorKind::Closed, producer.send(Outgoing::new(queue.clone(), message("m0")))).await?;
    refused(ErrorKind::Closed, broker.consume(&subscription, 1)).await?;
    refused(ErrorKind::Closed, broker.declare(&subscription)).await?;
    refused(ErrorKind::Closed, broker.declare_destination(&queue.into())).await?;
    refused(ErrorKind::Closed, broker.depth(&subscription)).await?;
    refused(ErrorKind::Closed, broker.purge_dead_letters(&subscription)).await?;
    refused(ErrorKind::Closed, broker.health()).await?;
    Ok(())
}

async fn a_healthy_broker_says_so(lab: Lab) -> Checked {
    lab.broker().health().await?;
    Ok(())
}
