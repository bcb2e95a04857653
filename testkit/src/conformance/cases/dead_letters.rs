//! Dead letters: whole, with their reason, of one group; shown, sent back, removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::{
    DeadLetterFilter, Destination, Outcome, Peek, Reason, Redrive, Subscription, now,
};
use tokio::time::Instant;

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages, sorted};
use crate::conformance::receiver::{Receiver, settle_all};
use crate::conformance::worked::{Sightings, Working, by_key};

cases! {
    a_dead_letter_says_why;
    dead_letters_belong_to_one_group: Need::TOPICS;
    looking_at_dead_letters_changes_nothing;
    a_peek_says_whether_it_is_complete: Need::Of(
        |can| can.complete_peek,
        "looking shows a sample only",
    );
    a_peek_of_a_sample_does_not_claim_to_be_complete: Need::Of(
        |can| !can.complete_peek,
        "looking shows all dead letters",
    );
    a_filter_selects_dead_letters;
    redrive_sends_all_back_and_starts_their_attempts_anew;
    redrive_sends_some_back;
    redrive_twice_sends_nothing_twice;
    redrive_reaches_only_its_own_group: Need::TOPICS;
    redrive_keeps_its_rate;
    redrive_keeps_the_order_of_each_key;
    a_redriven_message_can_be_given_up_again;
    purge_removes_what_is_there;
    dead_letters_outlive_their_connection;
    hundreds_of_dead_letters_are_shown_and_sent_back;
}

/// A group with so many dead letters, `m0` and on, alternately for reason `even` and `odd`.
async fn given_up(lab: &Lab, count: usize) -> Checked<(Destination, Subscription, Receiver)> {
    let (destination, subscription) = lab.group("one");
    let mut receiver = lab.consume(&subscription).await?;
    lab.publish(destination.clone(), messages(count)).await?;
    let mut settled = Vec::new();
    for _ in 0..count {
        let delivery = receiver.next().await?;
        let number: usize = delivery.envelope().id[1..].parse()?;
        let code = if number.is_multiple_of(2) { "even" } else { "odd" };
        settled.push(delivery.settle(Outcome::dead_letter(code, format!("error {number}"))));
    }
    for confirmation in settled {
        confirmation.await?;
    }
    lab.step("given up");
    Ok((destination, subscription, receiver))
}

async fn peek(lab: &Lab, subscription: &Subscription, filter: DeadLetterFilter) -> Checked<Peek> {
    Ok(lab.broker().dead_letters(subscription, &filter, 1000).await?)
}

async fn listed(
    lab: &Lab,
    subscription: &Subscription,
    filter: DeadLetterFilter,
) -> Checked<Vec<String>> {
    let entries = peek(lab, subscription, filter).await?.entries;
    Ok(sorted(entries.iter().map(|entry| entry.envelope.id.clone()).collect()))
}

async fn a_dead_letter_says_why(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("email");
    let mut receiver = lab.consume(&subscription).await?;
    lab.publish(destination.clone(), messages(1)).await?;
    let begun = now();
    receiver.next().await?.settle(Outcome::Retry { after: Duration::ZERO }).await?;
    let error = "smtp refused: größe ✓ \"quoted\"\nsecond line";
    let reason = Reason::new("no-mailbox", error);
    receiver.next().await?.settle(Outcome::DeadLetter { reason }).await?;
    let found = peek(&lab, &subscription, DeadLetterFilter::all()).await?.entries;
    let [entry] = &*found else { return Err(format!("one entry expected: {found:?}").into()) };
    let failure = entry.failure().ok_or("a dead letter without its failure")?;
    assert_eq!((&*failure.reason, &*failure.error), ("no-mailbox", error));
    assert_eq!(failure.group, subscription.group_name());
    assert_eq!(failure.origin, destination.name());
    assert_eq!(entry.hop.attempts, 2);
    let first = entry.hop.first_failure.ok_or("the time of the first failure is missing")?;
    // A broker may keep times in milliseconds.
    let slack = Duration::from_millis(1);
    assert!(begun <= first + slack && first <= failure.at, "{begun:?} {entry:?}");
    assert!(failure.at <= now() + slack, "{entry:?}");
    Ok(())
}

async fn dead_letters_belong_to_one_group(lab: Lab) -> Checked {
    let topic = lab::topic();
    let (one, two) = (
        Subscription::topic(topic.clone()).group("one"),
        Subscription::topic(topic.clone()).group("two"),
    );
    let mut of_one = lab.consume(&one).await?;
    let mut of_two = lab.consume(&two).await?;
    lab.publish(topic, messages(2)).await?;
    settle_all(of_one.take(2).await?, &Outcome::dead_letter("test", "")).await?;
    of_two.ack(2).await?;
    assert_eq!(listed(&lab, &one, DeadLetterFilter::all()).await?, ids(2));
    assert!(listed(&lab, &two, DeadLetterFilter::all()).await?.is_empty());
    of_one.quiet(QUIET).await
}

async fn looking_at_dead_letters_changes_nothing(lab: Lab) -> Checked {
    let (_destination, subscription, _receiver) = given_up(&lab, 5).await?;
    let first = peek(&lab, &subscription, DeadLetterFilter::all()).await?;
    for round in 0..3 {
        lab.step(format!("look again, {round}"));
        let again = peek(&lab, &subscription, DeadLetterFilter::all()).await?;
        assert_eq!(again.entries.len(), first.entries.len());
        for (before, after) in first.entries.iter().zip(&again.entries) {
            assert_eq!(before.envelope, after.envelope, "the order stays");
            assert_eq!(before.hop, after.hop);
        }
    }
    Ok(())
}

async fn a_peek_says_whether_it_is_complete(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, messages(5)).await?;
    let (mut receiver, mut expected) = (lab.consume(&subscription).await?, Vec::new());
    for _ in 0..5 {
        let delivery = receiver.next().await?;
        expected.push(delivery.envelope().id.clone());
        delivery.settle(Outcome::dead_letter("test", "")).await?;
    }
    let all = DeadLetterFilter::all();
    let some = lab.broker().dead_letters(&subscription, &all, 3).await?;
    let found: Vec<_> = some.entries.iter().map(|entry| entry.envelope.id.clone()).collect();
    assert_eq!(found, expected[..3], "the oldest first");
    assert!(!some.complete);
    let whole = lab.broker().dead_letters(&subscription, &all, 5).await?;
    assert_eq!(whole.entries.len(), 5);
    assert!(whole.complete);
    let none = Subscription::queue(lab::queue());
    lab.broker().declare(&none).await?;
    let empty = lab.broker().dead_letters(&none, &all, 5).await?;
    assert!(empty.entries.is_empty() && empty.complete);
    Ok(())
}

async fn a_peek_of_a_sample_does_not_claim_to_be_complete(lab: Lab) -> Checked {
    let (_destination, subscription, _receiver) = given_up(&lab, 5).await?;
    let some = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 3).await?;
    assert!(some.entries.len() <= 3);
    assert!(!some.complete);
    Ok(())
}

async fn a_filter_selects_dead_letters(lab: Lab) -> Checked {
    let (_destination, subscription, _receiver) = given_up(&lab, 6).await?;
    for (what, filter, expected) in [
        ("reason", DeadLetterFilter::all().reason("odd"), &["m1", "m3", "m5"][..]),
        ("ids", DeadLetterFilter::all().ids(["m2", "m4", "m9"]), &["m2", "m4"]),
        ("both", DeadLetterFilter::all().ids(["m2", "m3"]).reason("odd"), &["m3"]),
        ("another type", DeadLetterFilter::all().r#type("other"), &[]),
        ("age", DeadLetterFilter::all().older_than(Duration::from_hours(1)), &[]),
    ] {
        assert_eq!(listed(&lab, &subscription, filter).await?, expected, "by {what}");
    }
    let of_type = DeadLetterFilter::all().r#type("conformance.message");
    assert_eq!(listed(&lab, &subscription, of_type).await?, ids(6));
    Ok(())
}

async fn redrive_sends_all_back_and_starts_their_attempts_anew(lab: Lab) -> Checked {
    let (_destination, subscription, mut receiver) = given_up(&lab, 5).await?;
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 5);
    let taken = receiver.take(5).await?;
    for delivery in &taken {
        assert_eq!(delivery.attempt(), 1, "{delivery:?}");
        assert!(delivery.hop().failure.is_none(), "{:?}", delivery.hop());
        assert!(delivery.hop().id.is_some(), "each stored copy has an id of its own");
    }
    assert_eq!(super::super::lab::ids_of(&taken), ids(5));
    settle_all(taken, &Outcome::Ack).await?;
    assert!(listed(&lab, &subscription, DeadLetterFilter::all()).await?.is_empty());
    receiver.quiet(QUIET).await
}

async fn redrive_sends_some_back(lab: Lab) -> Checked {
    let (_destination, subscription, mut receiver) = given_up(&lab, 10).await?;
    lab.step("by reason");
    let odd = Redrive::all().filter(DeadLetterFilter::all().reason("odd"));
    assert_eq!(lab.broker().redrive(&subscription, &odd).await?, 5);
    assert_eq!(receiver.ack(5).await?, ["m1", "m3", "m5", "m7", "m9"]);
    lab.step("by id");
    let one = Redrive::all().filter(DeadLetterFilter::all().ids(["m4"]));
    assert_eq!(lab.broker().redrive(&subscription, &one).await?, 1);
    assert_eq!(receiver.ack(1).await?, ["m4"]);
    lab.step("a limit");
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all().limit(2)).await?, 2);
    assert_eq!(receiver.ack(2).await?.len(), 2);
    receiver.quiet(QUIET).await?;
    lab.step("the others stayed");
    assert_eq!(listed(&lab, &subscription, DeadLetterFilter::all()).await?.len(), 2);
    Ok(())
}

async fn redrive_twice_sends_nothing_twice(lab: Lab) -> Checked {
    let (_destination, subscription, mut receiver) = given_up(&lab, 20).await?;
    let other = lab.reconnected().await?;
    let all = Redrive::all();
    let (first, second) = tokio::join!(
        lab.broker().redrive(&subscription, &all),
        other.broker().redrive(&subscription, &all),
    );
    lab.step(format!("two at once: {first:?} and {second:?}"));
    let third = lab.broker().redrive(&subscription, &all).await?;
    assert_eq!(first? + second? + third, 20);
    assert_eq!(receiver.ack(20).await?, ids(20));
    receiver.quiet(QUIET).await?;
    assert_eq!(lab.broker().redrive(&subscription, &all).await?, 0);
    Ok(())
}

async fn redrive_reaches_only_its_own_group(lab: Lab) -> Checked {
    let (destination, subscription, mut receiver) = given_up(&lab, 3).await?;
    let Destination::Topic(topic) = destination else { return Err("no topic".into()) };
    let mut other = lab.consume(&Subscription::topic(topic).group("other")).await?;
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 3);
    assert_eq!(receiver.ack(3).await?, ids(3));
    other.quiet(QUIET).await
}

async fn redrive_keeps_its_rate(lab: Lab) -> Checked {
    let (_destination, subscription, mut receiver) = given_up(&lab, 6).await?;
    let begun = Instant::now();
    lab.broker().redrive(&subscription, &Redrive::all().per_second(5)).await?;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1), "6 messages at 5 a second took {took:?}");
    assert_eq!(receiver.ack(6).await?, ids(6));
    Ok(())
}

async fn redrive_keeps_the_order_of_each_key(lab: Lab) -> Checked {
    let queue = lab::queue().ordered();
    let subscription = Subscription::queue(queue.clone());
    let given_up = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&given_up);
    let (mut seen, service) = Sightings::of(move |_| {
        let works = works.load(Ordering::SeqCst);
        async move { Ok(if works { Outcome::Ack } else { Outcome::dead_letter("test", "") }) }
    });
    let working = Working::on(&lab, &subscription, service).await?;
    let rounds = (0..5).flat_map(|round| {
        (0..4).map(move |key| message(&format!("k{key}.{round}")).with_key(format!("k{key}")))
    });
    lab.publish(queue, rounds).await?;
    seen.take(20).await?;
    lab.depth(&subscription, "twenty dead letters", |depth| depth.dead_lettered == Some(20))
        .await?;
    given_up.store(true, Ordering::SeqCst);
    lab.step("redriven");
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 20);
    let again = seen.take(20).await?;
    let keys = by_key(&again);
    assert_eq!(keys.len(), 4);
    for (key, ids) in keys {
        let expected: Vec<_> = (0..5).map(|round| format!("{key}.{round}")).collect();
        assert_eq!(ids, expected, "key {key} is out of order");
    }
    let report = working.drain().await?;
    assert_eq!((report.dead_lettered, report.handled), (20, 20), "{report}");
    Ok(())
}

async fn a_redriven_message_can_be_given_up_again(lab: Lab) -> Checked {
    let (_destination, subscription, mut receiver) = given_up(&lab, 1).await?;
    for round in 0..4 {
        lab.step(format!("round {round}"));
        assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 1);
        let delivery = receiver.next().await?;
        assert_eq!(delivery.attempt(), 1);
        delivery.settle(Outcome::Retry { after: Duration::from_millis(1100) }).await?;
        let delivery = receiver.next().await?;
        assert_eq!(delivery.attempt(), 2);
        delivery.settle(Outcome::dead_letter("again", format!("round {round}"))).await?;
        let found = peek(&lab, &subscription, DeadLetterFilter::all()).await?.entries;
        assert_eq!(found.len(), 1);
        let failure = found[0].failure().ok_or("no failure")?;
        assert_eq!((&*failure.reason, failure.error.clone()), ("again", format!("round {round}")));
    }
    Ok(())
}

async fn purge_removes_what_is_there(lab: Lab) -> Checked {
    let (destination, subscription, mut receiver) = given_up(&lab, 7).await?;
    assert_eq!(lab.broker().purge_dead_letters(&subscription).await?, 7);
    assert!(listed(&lab, &subscription, DeadLetterFilter::all()).await?.is_empty());
    assert_eq!(lab.broker().purge_dead_letters(&subscription).await?, 0);
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 0);
    lab.step("the group itself is untouched");
    lab.publish(destination, [message("next")]).await?;
    assert_eq!(receiver.ack(1).await?, ["next"]);
    receiver.quiet(QUIET).await
}

async fn dead_letters_outlive_their_connection(lab: Lab) -> Checked {
    let other = lab.reconnected().await?;
    let (_destination, subscription, receiver) = given_up(&other, 3).await?;
    receiver.close().await?;
    other.broker().close().await?;
    assert_eq!(listed(&lab, &subscription, DeadLetterFilter::all()).await?, ids(3));
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 3);
    assert_eq!(lab.consume(&subscription).await?.ack(3).await?, ids(3));
    Ok(())
}

async fn hundreds_of_dead_letters_are_shown_and_sent_back(lab: Lab) -> Checked {
    let count = 300;
    let (_destination, subscription, mut receiver) = given_up(&lab, count).await?;
    if lab.broker().capabilities().complete_peek {
        assert_eq!(listed(&lab, &subscription, DeadLetterFilter::all()).await?, ids(count));
    }
    lab.step("redrive");
    let redriven = lab.broker().redrive(&subscription, &Redrive::all()).await?;
    assert_eq!(redriven, count as u64);
    assert_eq!(receiver.ack(count).await?, ids(count));
    receiver.quiet(QUIET).await
}
