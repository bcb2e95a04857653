//! What a process holds and does not handle is kept from the others of its group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{BoxError, Message, Outcome, Report, Subscription, Worker};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, PATIENCE, QUIET, message, messages};
use crate::conformance::receiver::{Receiver, settle_all};
use crate::conformance::worked::{Sightings, Working};

const SHARED: Need =
    Need::Of(|can| can.shares_partitions, "a partition is one process's, with all that is in it");

cases! {
    slow_handlers_of_two_workers_share_what_waits: SHARED;
    what_was_read_ahead_goes_back_when_handlers_turn_slow: SHARED, within 120;
    retries_that_wait_leave_room_for_others: Need::Nothing;
    a_prefetch_that_changes_is_kept: Need::Of(
        |can| can.resizes_prefetch,
        "a consumer keeps the prefetch it began with",
    );
    a_prefetch_that_cannot_change_is_kept: Need::Of(
        |can| !can.resizes_prefetch,
        "the prefetch of a consumer can be changed",
    );
    handlers_that_block_the_only_thread_cost_no_lease: Need::Nothing, within 120;
}

/// A worker that takes more than its handlers can start keeps the other one idle.
async fn slow_handlers_of_two_workers_share_what_waits(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let other = lab.reconnected().await?;
    let (open, gate) = watch::channel(false);
    let (mut seen, service) = Sightings::of(move |_| {
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            sleep(Duration::from_millis(500)).await;
            Ok(Outcome::Ack)
        }
    });
    let worker = |lab: &Lab| {
        let worker = Worker::new(lab.broker().clone()).concurrency(2).loops(1);
        worker.subscribe(subscription.clone(), service.clone())
    };
    let first = Working::start(worker(&lab)).await?;
    lab.publish(queue, messages(12)).await?;
    lab.step("the first one has all its handlers busy");
    seen.take(2).await?;
    let second = Working::start(worker(&other)).await?;
    lab.step("the second one too");
    seen.take(2).await?;
    open.send_replace(true);
    seen.take(8).await?;
    let (one, two) = (first.drain().await?.handled, second.drain().await?.handled);
    assert_eq!(one + two, 12);
    // Each holds at least a third for itself, however unequal they are.
    assert!(one.min(two) >= 3, "the first one handled {one} and the second one {two}");
    Ok(())
}

/// While handlers are fast it is right to read ahead. When they are no more, it goes back.
async fn what_was_read_ahead_goes_back_when_handlers_turn_slow(lab: Lab) -> Checked {
    const FAST: usize = 300;
    const SLOW: usize = 4;
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let other = lab.reconnected().await?;
    let (open, gate) = watch::channel(false);
    let (mut seen, service) = Sightings::of(move |message: Message| {
        let mut gate = gate.clone();
        async move {
            if message.envelope().id.starts_with("slow") {
                let _ = gate.wait_for(|open| *open).await;
            }
            Ok(Outcome::Ack)
        }
    });
    let worker = |lab: &Lab| {
        let worker = Worker::new(lab.broker().clone()).concurrency(1).loops(1);
        worker.subscribe(subscription.clone(), service.clone())
    };
    let first = Working::start(worker(&lab)).await?;
    let slow = (0..SLOW).map(|number| message(&format!("slow{number}")));
    lab.publish(queue.clone(), messages(FAST)).await?;
    lab.publish(queue, slow).await?;
    // What was given back may come later than what follows it.
    let mut handled = BTreeSet::new();
    let mut until_slow = async |handled: &mut BTreeSet<String>| -> Checked {
        loop {
            let id = seen.next().await?.id;
            let is_slow = id.starts_with("slow");
            handled.insert(id);
            if is_slow {
                return Ok(());
            }
        }
    };
    lab.step("a slow one");
    until_slow(&mut handled).await?;
    let second = Working::start(worker(&other)).await?;
    lab.step("a slow one in the second process");
    until_slow(&mut handled).await?;
    open.send_replace(true);
    lab.step("the other ones");
    while handled.len() < FAST + SLOW {
        handled.insert(seen.next().await?.id);
    }
    let (one, two) = (first.drain().await?, second.drain().await?);
    assert_eq!(one.handled + two.handled, (FAST + SLOW) as u64, "{one}, {two}");
    assert_eq!((one.released, two.released), (0, 0), "what no handler saw is nobody's release");
    Ok(())
}

/// A handler is free again while the retry of its message waits, and gets another one.
async fn retries_that_wait_leave_room_for_others(lab: Lab) -> Checked {
    const WAITING: usize = 2;
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        let waits = message.envelope().id.starts_with("waits") && message.attempt() == 1;
        Ok(if waits { Outcome::Retry { after: Duration::from_secs(5) } } else { Outcome::Ack })
    });
    lab.broker().declare(&subscription).await?;
    let waits = (0..WAITING).map(|number| message(&format!("waits{number}")));
    lab.publish(queue, waits.chain([message("other")])).await?;
    let worker = Worker::new(lab.broker().clone()).concurrency(WAITING).loops(1);
    let working = Working::start(worker.subscribe(subscription, service)).await?;
    lab.step("one more while they wait");
    let first = seen.take(WAITING + 1).await?;
    assert!(first.iter().all(|sight| sight.attempt == 1), "{first:?}");
    lab.step("their second attempts");
    let second = seen.take(WAITING).await?;
    assert!(second.iter().all(|sight| sight.attempt == 2), "{second:?}");
    let report = working.drain().await?;
    assert_eq!(report.handled, WAITING as u64 + 1, "{report}");
    Ok(())
}

async fn a_prefetch_that_changes_is_kept(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(10)).await?;
    let mut receiver = Receiver::open(lab.broker(), &Subscription::queue(queue), 2).await?;
    let mut held = receiver.take(2).await?;
    lab.step("room for three more");
    receiver.set_prefetch(5);
    held.extend(receiver.take(3).await?);
    receiver.quiet(QUIET).await?;
    lab.step("room for two only");
    receiver.set_prefetch(2);
    settle_all(held.split_off(2), &Outcome::Ack).await?;
    receiver.quiet(QUIET).await?;
    settle_all(held, &Outcome::Ack).await?;
    receiver.ack(5).await?;
    receiver.quiet(QUIET).await
}

async fn a_prefetch_that_cannot_change_is_kept(lab: Lab) -> Checked {
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(6)).await?;
    let mut receiver = Receiver::open(lab.broker(), &Subscription::queue(queue), 2).await?;
    let held = receiver.take(2).await?;
    receiver.set_prefetch(5);
    receiver.quiet(QUIET).await?;
    settle_all(held, &Outcome::Ack).await?;
    receiver.ack(4).await?;
    receiver.quiet(QUIET).await
}

/// Processes of one thread each, as in a container with one CPU; the last of them takes over at once
/// what another one is believed to have lost.
async fn handlers_that_block_the_only_thread_cost_no_lease(lab: Lab) -> Checked {
    const LEASE: Duration = Duration::from_secs(3);
    const COUNT: usize = 4;
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(LEASE);
    let (begun, mut begins) = mpsc::unbounded_channel();
    lab.broker().declare(&subscription).await?;
    lab.publish(queue, messages(COUNT)).await?;
    let calls = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
    let mut processes = Vec::new();
    for blocks in [true, true, false] {
        let (stop, stopped) = oneshot::channel::<()>();
        let (lab, subscription, begun) = (lab.clone(), subscription.clone(), begun.clone());
        let counted = Arc::clone(&calls);
        let process = std::thread::spawn(move || -> Result<Report, BoxError> {
            let (_seen, service) = Sightings::of(move |message: Message| {
                let (begun, counted) = (begun.clone(), Arc::clone(&counted));
                async move {
                    let id = message.envelope().id.clone();
                    *counted.lock().expect("no panic").entry(id).or_default() += 1;
                    // Who has seen enough reads no more.
                    let _ = begun.send(());
                    if blocks {
                        std::thread::sleep(LEASE * 3);
                    }
                    Ok(Outcome::Ack)
                }
            });
            Builder::new_current_thread().enable_all().build()?.block_on(async {
                let broker = lab.connect().await?;
                let worker = Worker::new(broker.clone()).concurrency(2);
                let running = worker.subscribe(subscription, service).start().await?;
                let report = running.run_until(stopped).await?;
                broker.close().await?;
                Ok(report)
            })
        });
        processes.push((stop, process));
        // The next one comes while this one blocks.
        if processes.len() == 1 {
            begins.recv().await;
        }
    }
    lab.step("as many calls as messages");
    for _ in 1..COUNT {
        tokio::time::timeout(PATIENCE, begins.recv()).await?;
    }
    // Whatever is no more held comes back within a lease, while the last ones still run.
    sleep(LEASE * 2).await;
    let mut report = Report::default();
    for (stop, process) in processes {
        drop(stop);
        let ended = tokio::task::spawn_blocking(move || process.join()).await?;
        report = [report, ended.map_err(|_| "a process panicked")??].into_iter().sum();
    }
    let calls = calls.lock().expect("no panic").clone();
    assert!(calls.len() == COUNT && calls.values().all(|count| *count == 1), "{calls:?}, {report}");
    assert_eq!((report.handled, report.stale, report.unsettled), (COUNT as u64, 0, 0), "{report}");
    Ok(())
}
