//! How a worker ends, in order or not, and what its messages come to.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{
    BoxError, DeadLetterFilter, ErrorKind, Message, Outcome, Reason, Subscription, Worker,
};
use tokio::time::sleep;

use crate::conformance::case::{Checked, cases};
use crate::conformance::lab::{self, Lab, QUIET, ids, message, messages, sorted};
use crate::conformance::worked::{Sightings, Working, acknowledge};

cases! {
    draining_under_load_loses_and_repeats_nothing;
    a_drain_that_runs_out_of_time_gives_the_message_back;
    an_aborted_worker_leaves_its_messages_to_the_next;
    a_message_that_kills_its_process_is_given_up_unseen;
    those_behind_a_message_that_kills_its_process_are_handled;
    a_suspect_that_takes_long_lets_the_others_go_on, within 120;
    a_worker_on_a_closed_broker_ends_and_says_so;
}

async fn draining_under_load_loses_and_repeats_nothing(lab: Lab) -> Checked {
    const COUNT: usize = 1500;
    let (destination, subscription) = lab.group("one");
    lab.broker().declare(&subscription).await?;
    let sender = lab.clone();
    let sent = tokio::spawn(async move {
        for burst in 0..15 {
            let range = burst * 100..(burst + 1) * 100;
            sender.publish(destination.clone(), range.map(|n| message(&format!("m{n}")))).await?;
        }
        Ok::<_, BoxError>(())
    });
    let mut all = Vec::new();
    let mut handled = 0;
    // Rolling restarts: each worker is drained in the middle of its work.
    for round in 0..5 {
        lab.step(format!("worker {round}, {handled} handled so far"));
        let (mut seen, service) = Sightings::of(|_| async {
            sleep(Duration::from_millis(5)).await;
            Ok(Outcome::Ack)
        });
        let other = lab.reconnected().await?;
        let working = Working::on(&other, &subscription, service).await?;
        all.extend(seen.take(if round == 4 { COUNT - all.len() } else { 150 }).await?);
        let report = working.drain().await?;
        handled += report.handled;
        assert_eq!((report.stale, report.unsettled), (0, 0), "{report}");
        all.extend(seen.rest());
        other.broker().close().await?;
    }
    sent.await??;
    assert!(all.iter().all(|sight| sight.attempt == 1), "a drain uses no attempt");
    assert_eq!(sorted(all.into_iter().map(|sight| sight.id).collect()), ids(COUNT));
    assert_eq!(handled, COUNT as u64);
    lab.consume(&subscription).await?.quiet(QUIET).await
}

async fn a_drain_that_runs_out_of_time_gives_the_message_back(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(|_| pending());
    let worker = Worker::new(lab.broker().clone()).drain_timeout(Duration::from_millis(300));
    let working = Working::start(worker.subscribe(subscription.clone(), service)).await?;
    lab.publish(queue, messages(3)).await?;
    seen.take(3).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.released), (0, 3), "{report}");
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &subscription, service).await?;
    let sights = seen.take(3).await?;
    assert!(sights.iter().all(|sight| sight.attempt == 1), "{sights:?}");
    assert_eq!(working.drain().await?.handled, 3);
    Ok(())
}

async fn an_aborted_worker_leaves_its_messages_to_the_next(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    let other = lab.reconnected().await?;
    let (mut seen, service) = Sightings::of(|_| pending());
    let working = Working::on(&other, &subscription, service).await?;
    lab.publish(queue, messages(10)).await?;
    seen.take(10).await?;
    working.crash(&other).await?;
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &subscription, service).await?;
    let seen_ids = seen.take(10).await?.into_iter().map(|sight| sight.id).collect();
    assert_eq!(sorted(seen_ids), ids(10));
    assert_eq!(working.drain().await?.handled, 10);
    Ok(())
}

async fn a_message_that_kills_its_process_is_given_up_unseen(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription =
        Subscription::queue(queue.clone()).max_deliveries(3).lease(Duration::from_secs(1));
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let note = |handled: &Mutex<BTreeSet<String>>, message: &Message| {
        handled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(message.envelope().id.clone());
    };
    lab.publish(queue.clone(), [message("poison")]).await?;
    let counts = lab.broker().capabilities().counts_crashes;
    for crash in 0..3 {
        lab.step(format!("crash {crash}"));
        if !counts && crash > 0 {
            break;
        }
        let handled = handled.clone();
        let (mut seen, service) = Sightings::of(move |message: Message| {
            let handled = handled.clone();
            async move {
                if message.envelope().id == "poison" {
                    pending::<()>().await;
                }
                note(&handled, &message);
                Ok(Outcome::Ack)
            }
        });
        let other = lab.reconnected().await?;
        let working = Working::on(&other, &subscription, service).await?;
        // The poison finds its way back in its own time, and neighbours may be handled before.
        let attempt = loop {
            let sight = seen.next().await?;
            if sight.id == "poison" {
                break sight.attempt;
            }
        };
        assert_eq!(attempt, crash + 1);
        match crash {
            0 => {
                lab.step("neighbours beside it");
                lab.publish(queue.clone(), messages(5)).await?;
                seen.take(5).await?;
                // They are settled before the crash, so that none is a neighbour twice.
                let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
                lab.depth(&subscription, "the poison alone", |depth| {
                    is(depth.ready, 0) && is(depth.in_flight, 1)
                })
                .await?;
            }
            // Handled beside it, or once it is given up: a broker that counts a crash for all that
            // it handed out hands a suspect out alone.
            1 => lab.publish(queue.clone(), ["n0", "n1", "n2"].map(message)).await?,
            _ => {}
        }
        working.crash(&other).await?;
    }
    if !counts {
        return Ok(());
    }
    lab.step("the fourth delivery");
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue, [message("last")]).await?;
    let all =
        BTreeSet::from(["last", "m0", "m1", "m2", "m3", "m4", "n0", "n1", "n2"].map(str::to_owned));
    let mut handled = handled.lock().unwrap_or_else(PoisonError::into_inner).clone();
    while handled != all {
        handled.insert(seen.next().await?.id);
        assert!(handled.is_subset(&all), "{handled:?}");
    }
    lab.step("the poison is given up");
    lab.depth(&subscription, "one dead letter", |depth| {
        depth.dead_lettered.is_none_or(|count| count == 1)
    })
    .await?;
    seen.quiet(QUIET).await?;
    assert_eq!(working.drain().await?.dead_lettered, 1);
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert_eq!(peek.entries.len(), 1);
    assert_eq!(peek.entries[0].failure().ok_or("no failure")?.reason, Reason::MAX_DELIVERIES);
    Ok(())
}

async fn those_behind_a_message_that_kills_its_process_are_handled(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription =
        Subscription::queue(queue.clone()).max_deliveries(3).lease(Duration::from_secs(1));
    lab.publish(queue.clone(), [message("poison")]).await?;
    lab.publish(queue, messages(5)).await?;
    let counts = lab.broker().capabilities().counts_crashes;
    let mut handled = BTreeSet::new();
    for crash in 0..4 {
        lab.step(format!("crash {crash}"));
        let (mut seen, service) = Sightings::of(|message: Message| async move {
            if message.envelope().id == "poison" {
                pending::<()>().await;
            }
            Ok(Outcome::Ack)
        });
        let other = lab.reconnected().await?;
        // One at a time: the others wait behind the poison, wherever the broker keeps them.
        let worker = Worker::new(other.broker().clone()).concurrency(1);
        let working = Working::start(worker.subscribe(subscription.clone(), service)).await?;
        // The last time the poison is given up unseen, and nothing stands before the others.
        let last = counts && crash == 3;
        while let Some(sight) = seen.within(QUIET).await? {
            lab.step(format!("crash {crash} after {sight:?}"));
            handled.insert(sight.id);
        }
        while last && handled.len() < 6 {
            handled.insert(seen.next().await?.id);
        }
        if last {
            lab.depth(&subscription, "one dead letter", |depth| {
                depth.dead_lettered.is_none_or(|count| count == 1)
            })
            .await?;
        }
        working.crash(&other).await?;
        if !counts {
            return Ok(());
        }
    }
    lab.step("all but the poison were handled");
    lab.consume(&subscription).await?.quiet(QUIET).await?;
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    let dead: Vec<_> = peek.entries.iter().map(|entry| &*entry.envelope.id).collect();
    assert_eq!(dead, ["poison"], "others were given up unseen");
    Ok(())
}

/// What may have ended its process is handled alone, but not for as long as it likes.
async fn a_suspect_that_takes_long_lets_the_others_go_on(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription =
        Subscription::queue(queue.clone()).max_deliveries(8).lease(Duration::from_secs(1));
    lab.publish(queue.clone(), [message("suspect")]).await?;
    for crash in 0..3 {
        lab.step(format!("crash {crash}"));
        let (mut seen, service) = Sightings::of(|_| pending());
        let other = lab.reconnected().await?;
        let working = Working::on(&other, &subscription, service).await?;
        seen.next().await?;
        working.crash(&other).await?;
    }
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.envelope().id == "suspect" {
            pending::<()>().await;
        }
        Ok(Outcome::Ack)
    });
    let worker = Worker::new(lab.broker().clone()).drain_timeout(Duration::from_millis(300));
    let working = Working::start(worker.subscribe(subscription, service)).await?;
    assert_eq!(seen.next().await?.id, "suspect");
    lab.step("others beside it");
    lab.publish(queue, messages(5)).await?;
    let mut others = Vec::new();
    while others.len() < 5 {
        let sight = seen.within(Duration::from_secs(45)).await?.ok_or("they are held up")?;
        others.push(sight.id);
    }
    assert_eq!(sorted(others), ids(5));
    assert_eq!(working.drain().await?.handled, 5);
    Ok(())
}

async fn a_worker_on_a_closed_broker_ends_and_says_so(lab: Lab) -> Checked {
    let (_seen, service) = Sightings::of(acknowledge);
    let other = lab.reconnected().await?;
    let working = Working::on(&other, &Subscription::queue(lab::queue()), service).await?;
    other.broker().close().await?;
    let Err(error) = working.ended().await? else { return Err("it ended without an error".into()) };
    assert_eq!(error.kind(), ErrorKind::Closed);
    Ok(())
}
