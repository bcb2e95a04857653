//! The worker on this broker: retries, leases, and the limits it keeps.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::time::Duration;

use anybroker_core::{
    DeadLetterFilter, Envelope, Expired, Message, Outcome, Outgoing, Reason, Subscription, Worker,
    now, permanent,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, QUIET, message, messages};
use crate::conformance::worked::{Sightings, Working, acknowledge};

cases! {
    no_message_waits_for_a_handler_while_another_is_free;
    a_handler_that_always_fails_leaves_one_dead_letter_and_no_hot_loop, within 90;
    a_permanent_error_is_given_up_at_once;
    a_panic_is_retried_and_harms_no_neighbour;
    retries_reach_the_handler_neither_early_nor_late;
    delayed_publishes_reach_the_handler_neither_early_nor_late;
    a_waiting_retry_holds_up_no_other_message;
    a_slow_handler_keeps_its_message;
    an_expired_message_is_given_up_unseen;
    an_expired_message_may_be_discarded;
    several_subscriptions_run_in_one_worker: Need::TOPICS;
}

async fn a_handler_that_always_fails_leaves_one_dead_letter_and_no_hot_loop(lab: Lab) -> Checked {
    let (destination, subscription) = lab.group("failing");
    let (mut seen, service) = Sightings::of(|_| async { Err("out of paper".into()) });
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(destination, messages(1)).await?;
    let mut last: Option<Instant> = None;
    for attempt in 1..=5 {
        lab.step(format!("attempt {attempt}"));
        let sight = seen.next().await?;
        assert_eq!(sight.attempt, attempt);
        if let Some(last) = last {
            let paused = sight.at - last;
            assert!(paused >= Duration::from_millis(500), "a hot loop: again after {paused:?}");
        }
        last = Some(sight.at);
    }
    seen.quiet(2 * QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (0, 4, 1), "{report}");
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    let [entry] = &*peek.entries else { return Err(format!("one expected: {peek:?}").into()) };
    let failure = entry.failure().ok_or("no failure")?;
    assert_eq!(failure.reason, Reason::EXHAUSTED);
    assert!(failure.error.contains("out of paper"), "{failure:?}");
    assert_eq!(entry.hop.attempts, 5);
    Ok(())
}

async fn a_permanent_error_is_given_up_at_once(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.envelope().id == "m1" {
            Err(permanent("no such customer"))
        } else {
            Ok(Outcome::Ack)
        }
    });
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue, messages(3)).await?;
    seen.take(3).await?;
    seen.quiet(QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (2, 0, 1), "{report}");
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert_eq!(peek.entries.len(), 1);
    assert_eq!(peek.entries[0].envelope.id, "m1");
    assert_eq!(peek.entries[0].failure().ok_or("no failure")?.reason, Reason::PERMANENT);
    Ok(())
}

async fn a_panic_is_retried_and_harms_no_neighbour(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        // Quietly: this panic is meant, and a trace of it would look like a failed case.
        if message.envelope().id == "m0" && message.attempt() == 1 {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        Ok(Outcome::Ack)
    });
    let working = Working::on(&lab, &Subscription::queue(queue.clone()), service).await?;
    lab.publish(queue, messages(20)).await?;
    let seen_ids = seen.take(21).await?.into_iter().map(|sight| sight.id).collect::<HashSet<_>>();
    assert_eq!(seen_ids.len(), 20);
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (20, 1, 0), "{report}");
    Ok(())
}

/// Below and above what the worker waits for itself (5 s), and between the brokers' tiers.
const DELAYS: [u64; 7] = [0, 300, 1000, 1700, 4900, 5200, 7300];
const LATE: Duration = Duration::from_secs(1);

async fn retries_reach_the_handler_neither_early_nor_late(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.attempt() > 1 {
            return Ok(Outcome::Ack);
        }
        Ok(Outcome::Retry { after: Duration::from_millis(message.envelope().id.parse()?) })
    });
    let working = Working::on(&lab, &Subscription::queue(queue.clone()), service).await?;
    lab.publish(queue, DELAYS.map(|delay| message(&delay.to_string()))).await?;
    let sights = seen.take(2 * DELAYS.len()).await?;
    for delay in DELAYS {
        let of_one: Vec<_> = sights.iter().filter(|sight| sight.id == delay.to_string()).collect();
        let [first, second] = &*of_one else { return Err(format!("{of_one:?}").into()) };
        assert_eq!((first.attempt, second.attempt), (1, 2));
        in_time(delay, second.at - first.at, second.at - first.at);
    }
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried), (7, 7), "{report}");
    Ok(())
}

async fn delayed_publishes_reach_the_handler_neither_early_nor_late(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &Subscription::queue(queue.clone()), service).await?;
    let producer = lab.broker().producer();
    let mut sends = JoinSet::new();
    let begun = Instant::now();
    for delay in DELAYS {
        let outgoing = Outgoing::new(queue.clone(), message(&delay.to_string()));
        let sent = producer.send(outgoing.with_delay(Duration::from_millis(delay)));
        sends.spawn(async move { sent.await.map(|()| (delay, Instant::now())) });
    }
    let mut confirmed = HashMap::new();
    while let Some(sent) = sends.join_next().await {
        let (delay, at) = sent??;
        confirmed.insert(delay, at);
    }
    for sight in seen.take(DELAYS.len()).await? {
        assert_eq!(sight.attempt, 1, "waiting is no attempt");
        let delay = sight.id.parse()?;
        in_time(delay, sight.at - begun, sight.at.saturating_duration_since(confirmed[&delay]));
    }
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried), (7, 0), "{report}");
    Ok(())
}

/// Early counts from the call, late from its confirmation.
fn in_time(delay: u64, called: Duration, confirmed: Duration) {
    let delay = Duration::from_millis(delay);
    assert!(called >= delay, "{delay:?} is early: after {called:?}");
    assert!(confirmed <= delay + LATE, "{delay:?} is late: after {confirmed:?}");
}

async fn a_waiting_retry_holds_up_no_other_message(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.envelope().id.starts_with("slow") && message.attempt() == 1 {
            return Ok(Outcome::Retry { after: Duration::from_secs(4) });
        }
        Ok(Outcome::Ack)
    });
    let worker = Worker::new(lab.broker().clone()).concurrency(1);
    let working =
        Working::start(worker.subscribe(Subscription::queue(queue.clone()), service)).await?;
    lab.publish(queue.clone(), ["slow1", "slow2", "slow3"].map(message)).await?;
    seen.take(3).await?;
    let begun = Instant::now();
    lab.publish(queue, messages(20)).await?;
    for sight in seen.take(20).await? {
        assert!(sight.id.starts_with('m'), "{sight:?} is early");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "20 messages took {took:?} with one slot");
    seen.take(3).await?;
    assert_eq!(working.drain().await?.handled, 23);
    Ok(())
}

async fn a_slow_handler_keeps_its_message(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    let (mut seen, service) = Sightings::of(|_| async {
        sleep(Duration::from_millis(3500)).await;
        Ok(Outcome::Ack)
    });
    let first = Working::on(&lab, &subscription, service.clone()).await?;
    let other = lab.reconnected().await?;
    let second = Working::on(&other, &subscription, service).await?;
    lab.publish(queue, messages(2)).await?;
    let sights = seen.take(2).await?;
    assert!(sights.iter().all(|sight| sight.attempt == 1), "{sights:?}");
    seen.quiet(Duration::from_secs(5)).await?;
    let (one, two) = (first.drain().await?, second.drain().await?);
    assert_eq!((one.handled + two.handled, one.stale + two.stale), (2, 0), "{one}; {two}");
    Ok(())
}

fn expired() -> Envelope {
    message("expired").with_expires(now() - Duration::from_secs(1))
}

async fn an_expired_message_is_given_up_unseen(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &subscription, service).await?;
    let later = message("later").with_expires(now() + Duration::from_mins(5));
    lab.publish(queue, [expired(), later]).await?;
    assert_eq!(seen.next().await?.id, "later");
    seen.quiet(QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.dead_lettered), (1, 1), "{report}");
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert_eq!(peek.entries[0].failure().ok_or("no failure")?.reason, Reason::EXPIRED);
    Ok(())
}

async fn an_expired_message_may_be_discarded(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).expired(Expired::Discard);
    let (mut seen, service) = Sightings::of(acknowledge);
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue, [expired(), message("other")]).await?;
    assert_eq!(seen.next().await?.id, "other");
    seen.quiet(QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.discarded, report.dead_lettered), (1, 1, 0), "{report}");
    Ok(())
}

async fn several_subscriptions_run_in_one_worker(lab: Lab) -> Checked {
    let (queue, topic) = (lab::queue(), lab::topic());
    let (mut of_queue, queue_service) = Sightings::of(acknowledge);
    let (mut of_one, one_service) = Sightings::of(acknowledge);
    let (mut of_two, two_service) = Sightings::of(acknowledge);
    let worker = Worker::new(lab.broker().clone())
        .subscribe(Subscription::queue(queue.clone()), queue_service)
        .subscribe(Subscription::topic(topic.clone()).group("one"), one_service)
        .subscribe(Subscription::topic(topic.clone()).group("two"), two_service);
    let working = Working::start(worker).await?;
    lab.publish(queue, messages(10)).await?;
    lab.publish(topic, messages(20)).await?;
    of_queue.take(10).await?;
    of_one.take(20).await?;
    of_two.take(20).await?;
    assert_eq!(working.drain().await?.handled, 50);
    Ok(())
}

/// Whichever loop's consumer has received it.
async fn no_message_waits_for_a_handler_while_another_is_free(lab: Lab) -> Checked {
    const COUNT: usize = 40;
    let queue = lab::queue();
    lab.publish(queue.clone(), messages(COUNT)).await?;
    let (mut seen, service) = Sightings::of(|_| pending());
    let worker = Worker::new(lab.broker().clone()).drain_timeout(Duration::from_millis(300));
    let worker = worker.subscribe(Subscription::queue(queue), service);
    let working = Working::start(worker.concurrency(COUNT).loops(2)).await?;
    seen.take(COUNT).await?;
    assert_eq!(working.drain().await?.released, COUNT as u64);
    Ok(())
}
