//! Processes end with messages in their hands: exactly those come again, and one that ends its
//! process each time is given up alone.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anybroker_core::{DeadLetterFilter, Outcome, Reason, Subscription};
use tokio::time::{Instant, sleep};

use crate::Child;
use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::child::{Folder, Handling};
use crate::conformance::lab::{self, Lab, PATIENCE, QUIET, ids, message, messages, sorted};

cases! {
    a_killed_process_leaves_exactly_what_it_held: Need::Processes;
    a_process_that_stood_still_past_its_lease_goes_on_and_nothing_is_lost: Need::Processes, within 90;
    a_retry_that_waits_in_a_process_that_stood_still_is_not_run_twice: Need::Processes, within 150;
    a_message_that_aborts_its_process_is_one_dead_letter: Need::Processes, within 90;
    a_message_that_aborts_near_its_limit_is_one_dead_letter: Need::Processes, within 90;
    a_message_that_aborts_beside_other_loops_is_one_dead_letter: Need::Processes, within 90;
}

/// Longer than a receive stays open that a killed process began: it takes, and counts, what comes
/// back meanwhile.
const LEASE: Duration = Duration::from_secs(5);

async fn a_killed_process_leaves_exactly_what_it_held(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(LEASE);
    let folder = Folder::new(subscription.destination().name())?;
    let ledger = folder.path("handled");
    lab.publish(queue.clone(), messages(5)).await?;
    let mut child = Child::consumer(lab.target(), &subscription, &ledger)?;
    lab.step("what the child has done with");
    until(&mut child, &ledger, |handling| handling.ends.len() == 5).await?;
    lab.step("as many as a child handles at once");
    let held: Vec<_> = (0..16).map(|number| format!("hang{number}")).collect();
    lab.publish(queue.clone(), held.iter().map(|id| message(id))).await?;
    let handling = until(&mut child, &ledger, |handling| handling.starts.len() == 21).await?;
    assert!(handling.starts.iter().all(|(_, attempt)| *attempt == 1), "{handling:?}");
    let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
    lab.depth(&subscription, "what it holds", |depth| {
        is(depth.ready, 0) && is(depth.in_flight, 16)
    })
    .await?;
    lab.publish(queue.clone(), ["b0", "b1", "b2"].map(message)).await?;
    child.check()?;
    child.kill()?;
    lab.step("what it held, and what waited behind");
    let mut receiver = lab.consume(&subscription).await?;
    let counts = lab.broker().capabilities().counts_crashes;
    let mut again = Vec::new();
    while again.len() < held.len() + 3 {
        let delivery = receiver.next().await?;
        let (id, attempt) = (delivery.envelope().id.clone(), delivery.attempt());
        if id.starts_with("hang") {
            assert_eq!(attempt, if counts { 2 } else { 1 }, "{id}");
        } else {
            // What no handler has seen counts where the broker knows only what it handed out.
            assert!(attempt <= 2, "{id} was never handled, and is at attempt {attempt}");
        }
        delivery.settle(Outcome::Ack).await?;
        again.push(id);
    }
    assert_eq!(
        sorted(again),
        sorted([held, ["b0", "b1", "b2"].map(str::to_owned).into()].concat())
    );
    lab.step("what the child never saw");
    lab.publish(queue, [message("after")]).await?;
    let after = receiver.next().await?;
    assert_eq!((&*after.envelope().id, after.attempt()), ("after", 1));
    after.settle(Outcome::Ack).await?;
    receiver.quiet(QUIET).await?;
    assert_eq!(Handling::read(&ledger)?.starts.len(), handling.starts.len());
    Ok(())
}

/// As a laptop that sleeps, or a machine that swaps: it wakes with messages in its hands that are
/// somebody else's by now.
async fn a_process_that_stood_still_past_its_lease_goes_on_and_nothing_is_lost(
    lab: Lab,
) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(LEASE);
    let folder = Folder::new(subscription.destination().name())?;
    let (first, second) = (folder.path("first"), folder.path("second"));
    let slow: Vec<_> = (0..60).map(|number| format!("slow{number}")).collect();
    lab.publish(queue.clone(), slow.iter().map(|id| message(id))).await?;
    let mut sleeper = Child::consumer(lab.target(), &subscription, &first)?;
    until(&mut sleeper, &first, |handling| handling.starts.len() >= 16).await?;
    sleeper.stop()?;
    let mut other = Child::consumer(lab.target(), &subscription, &second)?;
    sleep(LEASE + Duration::from_secs(3)).await;
    sleeper.resume()?;
    lab.step("all of them, by one or the other");
    let all: HashSet<_> = slow.into_iter().collect();
    until(&mut sleeper, &second, |by_other| {
        let by_sleeper = Handling::read(&first).map(|handling| handling.ends).unwrap_or_default();
        by_sleeper.iter().chain(&by_other.ends).collect::<HashSet<_>>() == all.iter().collect()
    })
    .await?;
    let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
    lab.depth(&subscription, "nothing", |depth| {
        is(depth.ready, 0) && is(depth.in_flight, 0) && is(depth.dead_lettered, 0)
    })
    .await?;
    lab.step("the one that stood still, alone");
    other.check()?;
    other.kill()?;
    lab.publish(queue, messages(5)).await?;
    until(&mut sleeper, &first, |handling| ids(5).iter().all(|id| handling.ends.contains(id)))
        .await?;
    Ok(())
}

/// It is due when the process goes on, and comes to another one meanwhile.
async fn a_retry_that_waits_in_a_process_that_stood_still_is_not_run_twice(lab: Lab) -> Checked {
    // Where only heartbeats tell that a process is gone, it takes a few of them.
    const GONE: Duration = Duration::from_secs(90);
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(LEASE);
    let folder = Folder::new(subscription.destination().name())?;
    let (first, second) = (folder.path("first"), folder.path("second"));
    let waiting: HashSet<_> = (0..8).map(|number| format!("wait{number}")).collect();
    lab.publish(queue.clone(), waiting.iter().map(|id| message(id))).await?;
    let mut sleeper = Child::consumer(lab.target(), &subscription, &first)?;
    until(&mut sleeper, &first, |handling| handling.starts.len() >= waiting.len()).await?;
    sleeper.stop()?;
    // On a slow machine some were due before it stood still.
    let before = Handling::read(&first)?;
    lab.step("all of them, by another process");
    let mut other = Child::consumer(lab.target(), &subscription, &second)?;
    until_within(GONE, &mut other, &second, |handling| {
        waiting.iter().all(|id| before.ends.contains(id) || handling.ends.contains(id))
    })
    .await?;
    let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
    lab.depth(&subscription, "nothing", |depth| is(depth.ready, 0) && is(depth.in_flight, 0))
        .await?;
    other.kill()?;
    lab.step("the one that stood still");
    sleeper.resume()?;
    lab.publish(queue, [message("after")]).await?;
    let after = |handling: &Handling| handling.ends.iter().any(|id| id == "after");
    let handling = until_within(GONE, &mut sleeper, &first, after).await?;
    let again: Vec<_> = handling.starts[before.starts.len()..].iter().map(|(id, _)| id).collect();
    assert_eq!(again, ["after"], "run by both");
    Ok(())
}

/// Waits until the child has done so much.
async fn until(
    child: &mut Child,
    ledger: &Path,
    done: impl Fn(&Handling) -> bool,
) -> Checked<Handling> {
    until_within(PATIENCE, child, ledger, done).await
}

async fn until_within(
    patience: Duration,
    child: &mut Child,
    ledger: &Path,
    done: impl Fn(&Handling) -> bool,
) -> Checked<Handling> {
    let end = Instant::now() + patience;
    loop {
        child.check()?;
        let handling = Handling::read(ledger)?;
        if done(&handling) {
            return Ok(handling);
        }
        assert!(Instant::now() < end, "{handling:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn a_message_that_aborts_its_process_is_one_dead_letter(lab: Lab) -> Checked {
    if let Some(attempts) = abort_each_time(&lab, 3, 1).await? {
        assert_eq!(attempts, [1, 2, 3]);
    }
    Ok(())
}

/// With three deliveries those beside it have one left once they have come back twice, with two
/// none.
async fn a_message_that_aborts_near_its_limit_is_one_dead_letter(lab: Lab) -> Checked {
    match abort_each_time(&lab, 2, 1).await?.as_deref() {
        // Where nobody knows which one ran, it runs once more, alone.
        None | Some([1, 2] | [1, 2, 2]) => Ok(()),
        Some(attempts) => Err(format!("it ran as attempts {attempts:?}").into()),
    }
}

/// A crash counts once for each message, however many loops the process has.
async fn a_message_that_aborts_beside_other_loops_is_one_dead_letter(lab: Lab) -> Checked {
    if let Some(attempts) = abort_each_time(&lab, 3, 4).await? {
        assert_eq!(attempts, [1, 2, 3]);
    }
    Ok(())
}

/// Answers the attempts of the message that aborts its process until it is given up, and no other
/// one with it; none where the broker does not count them.
async fn abort_each_time(lab: &Lab, limit: u32, loops: u64) -> Checked<Option<Vec<u32>>> {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).max_deliveries(limit).lease(LEASE);
    let folder = Folder::new(subscription.destination().name())?;
    let ledger = folder.path("handled");
    // Some are done before it aborts, some are cut off beside it, some wait behind it.
    let slow = (0..4).map(|number| format!("slow{number}"));
    let innocent: HashSet<_> = ids(40).into_iter().chain(slow.clone()).collect();
    lab.publish(queue.clone(), messages(5)).await?;
    let beside = slow.chain(["abort".to_owned()]);
    lab.publish(queue.clone(), beside.map(|id| message(&id))).await?;
    lab.publish(queue, messages(40).skip(5)).await?;
    for start in 1.. {
        let mut child = Child::with_loops(lab.target(), &subscription, &ledger, loops)?;
        let (mut end, mut fewest) = (Instant::now() + PATIENCE, usize::MAX);
        let ended = loop {
            if let Some(status) = child.ended()? {
                break Some(status);
            }
            let ended: HashSet<_> = Handling::read(&ledger)?.ends.into_iter().collect();
            let missing = innocent.difference(&ended).count();
            // What came back is handled one by one, which takes its time on a busy machine.
            if missing < fewest {
                (end, fewest) = (Instant::now() + PATIENCE, missing);
            }
            lab.step(format!("start {start}: {missing} are not handled"));
            let depth = lab.broker().depth(&subscription).await?;
            let is = |value: Option<u64>, expected| value.is_none_or(|value| value == expected);
            let settled = is(depth.ready, 0) && is(depth.in_flight, 0);
            if missing == 0 && settled && is(depth.dead_lettered, 1) {
                break None;
            }
            assert!(Instant::now() < end, "no end of it: {depth:?}");
            sleep(Duration::from_millis(50)).await;
        };
        let Some(status) = ended else { break };
        assert!(status.signal().is_some(), "it did not abort but ended by itself: {status}");
        if start == limit && !lab.broker().capabilities().counts_crashes {
            return Ok(None);
        }
        assert!(start <= 3, "it has aborted {start} processes");
    }
    let starts = Handling::read(&ledger)?.starts.into_iter();
    let attempts: Vec<_> = starts.filter(|(id, _)| id == "abort").map(|start| start.1).collect();
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    let dead: Vec<_> = peek.entries.iter().map(|entry| &*entry.envelope.id).collect();
    assert_eq!(dead, ["abort"]);
    assert_eq!(peek.entries[0].failure().ok_or("no failure")?.reason, Reason::MAX_DELIVERIES);
    Ok(Some(attempts))
}
