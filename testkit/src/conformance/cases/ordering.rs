//! Order: messages of one key one after the other, whatever happens.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{
    BoxError, Depth, Destination, Envelope, Message, Outcome, Outgoing, Queue, Subscription, Worker,
};
use tokio::time::{sleep, timeout};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, ids, message, messages};
use crate::conformance::worked::{Sight, Sightings, Working, by_key};

cases! {
    messages_sent_one_after_the_other_arrive_in_that_order;
    messages_sent_while_their_destination_is_declared_keep_their_order;
    ten_consumers_keep_sixteen_keys_of_a_queue_in_order;
    ten_consumers_keep_sixteen_keys_of_a_topic_in_order: Need::TOPICS;
    ten_consumers_keep_the_order_of_a_topic_in_four_partitions: Need::TOPICS;
    a_retry_holds_back_its_key_and_no_other;
    what_is_due_far_ahead_keeps_no_other_key_from_its_handlers, within 120;
    rolling_restarts_keep_the_order;
    a_crash_keeps_the_order;
}

const KEYS: usize = 16;

/// So many rounds of a message for each key: `k3.7` is the seventh of key `k3`.
fn rounds(count: usize) -> impl Iterator<Item = Envelope> {
    (0..count).flat_map(|round| {
        (0..KEYS).map(move |key| message(&format!("k{key}.{round}")).with_key(format!("k{key}")))
    })
}

/// Checks that each key's messages were seen first in their order, and all of them.
fn in_order(sights: &[Sight], count: usize) {
    let keys = by_key(sights);
    assert_eq!(keys.len(), KEYS);
    for (key, seen) in keys {
        let mut first = Vec::new();
        for id in seen {
            if !first.contains(&id) {
                first.push(id);
            }
        }
        let expected: Vec<_> = (0..count).map(|round| format!("{key}.{round}")).collect();
        assert_eq!(first, expected, "key {key} is out of order");
    }
}

/// Notes which keys are being handled, to find two of one at once.
#[derive(Clone, Default)]
struct Lanes(Arc<Mutex<HashMap<String, u32>>>);

impl Lanes {
    fn change(&self, key: Option<&str>, change: impl FnOnce(&mut u32)) -> u32 {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = running.entry(key.unwrap_or_default().to_owned()).or_default();
        change(count);
        *count
    }

    async fn handle(&self, message: &Message, work: Duration) -> Result<(), BoxError> {
        let key = message.envelope().key.as_deref();
        let at_once = self.change(key, |count| *count += 1);
        sleep(work).await;
        self.change(key, |count| *count -= 1);
        if at_once > 1 { Err(format!("{at_once} of key {key:?} at once").into()) } else { Ok(()) }
    }
}

async fn messages_sent_one_after_the_other_arrive_in_that_order(lab: Lab) -> Checked {
    let queue = lab::queue().ordered();
    let mut receiver = lab.consume(&Subscription::queue(queue.clone())).await?;
    lab.publish(queue, messages(500).map(|envelope| envelope.with_key("same"))).await?;
    for id in ids(500) {
        let delivery = receiver.next().await?;
        assert_eq!(delivery.envelope().id, id);
        delivery.settle(Outcome::Ack).await?;
    }
    Ok(())
}

/// The first ones wait until the destination is declared, and those that are sent while they are
/// handed on do not pass them.
async fn messages_sent_while_their_destination_is_declared_keep_their_order(lab: Lab) -> Checked {
    const MOST: usize = 1_000;
    let queue = lab::queue().ordered();
    lab.broker().declare(&Subscription::queue(queue.clone())).await?;
    let other = lab.reconnected().await?;
    let producer = other.broker().producer();
    let send =
        |envelope: Envelope| producer.send(Outgoing::new(queue.clone(), envelope.with_key("same")));
    let mut envelopes = messages(MOST);
    let mut confirmations: Vec<_> = envelopes.by_ref().take(1).map(send).collect();
    let mut first = confirmations.remove(0);
    let mut confirmed = None;
    while confirmed.is_none() && confirmations.len() < MOST - 1 {
        confirmations.extend(envelopes.by_ref().take(20).map(send));
        confirmed = timeout(Duration::from_millis(1), &mut first).await.ok();
    }
    match confirmed {
        Some(confirmed) => confirmed?,
        None => first.await?,
    }
    let count = confirmations.len() + 1;
    for confirmation in confirmations {
        confirmation.await?;
    }
    let mut receiver = lab.consume(&Subscription::queue(queue)).await?;
    for id in ids(count) {
        let delivery = receiver.next().await?;
        assert_eq!(delivery.envelope().id, id);
        delivery.settle(Outcome::Ack).await?;
    }
    Ok(())
}

fn ordered_queue() -> Queue {
    lab::queue().ordered().partitions(4)
}

async fn ten_consumers_keep_sixteen_keys_of_a_queue_in_order(lab: Lab) -> Checked {
    let queue = ordered_queue();
    ten_consumers(lab, queue.clone().into(), Subscription::queue(queue)).await
}

async fn ten_consumers_keep_sixteen_keys_of_a_topic_in_order(lab: Lab) -> Checked {
    let topic = lab::topic().ordered();
    let subscription = Subscription::topic(topic.clone()).group("one");
    ten_consumers(lab, topic.into(), subscription).await
}

async fn ten_consumers_keep_the_order_of_a_topic_in_four_partitions(lab: Lab) -> Checked {
    let topic = lab::topic().ordered().partitions(4);
    let subscription = Subscription::topic(topic.clone()).group("one");
    ten_consumers(lab, topic.into(), subscription).await
}

async fn ten_consumers(lab: Lab, destination: Destination, subscription: Subscription) -> Checked {
    const ROUNDS: usize = 40;
    let lanes = Lanes::default();
    let (mut seen, service) = Sightings::of(move |message: Message| {
        let lanes = lanes.clone();
        async move {
            let work =
                Duration::from_micros(200 * (u64::from(message.envelope().id.as_bytes()[1]) % 7));
            lanes.handle(&message, work).await.map_err(anybroker_core::permanent)?;
            Ok(Outcome::Ack)
        }
    });
    let mut workers = Vec::new();
    for index in 0..10 {
        lab.step(format!("start worker {index}"));
        let other = lab.reconnected().await?;
        workers.push(Working::on(&other, &subscription, service.clone()).await?);
    }
    lab.step("publish");
    lab.publish(destination, rounds(ROUNDS)).await?;
    lab.step("handle");
    let sights = seen.take(KEYS * ROUNDS).await?;
    in_order(&sights, ROUNDS);
    let mut handled = 0;
    for worker in workers {
        let report = worker.drain().await?;
        assert_eq!(report.dead_lettered, 0, "two messages of one key ran at once: {report}");
        handled += report.handled;
    }
    assert_eq!(handled, (KEYS * ROUNDS) as u64);
    Ok(())
}

async fn a_retry_holds_back_its_key_and_no_other(lab: Lab) -> Checked {
    const ROUNDS: usize = 8;
    let queue = lab::queue().ordered();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        // Every third message of the even keys fails once.
        let id = &message.envelope().id;
        let (key, round) = id[1..].split_once('.').ok_or("no key")?;
        let (key, round): (usize, usize) = (key.parse()?, round.parse()?);
        if key.is_multiple_of(2) && round % 3 == 1 && message.attempt() == 1 {
            return Ok(Outcome::Retry { after: Duration::from_millis(700) });
        }
        Ok(Outcome::Ack)
    });
    let worker = Worker::new(lab.broker().clone()).concurrency(32);
    let working = Working::start(worker.subscribe(subscription, service)).await?;
    lab.publish(queue, rounds(ROUNDS)).await?;
    let retries = KEYS / 2 * 3;
    let sights = seen.take(KEYS * ROUNDS + retries).await?;
    in_order(&sights, ROUNDS);
    for (key, seen) in by_key(&sights) {
        for pair in seen.windows(2) {
            let [earlier, later] = pair else { continue };
            assert!(earlier <= later, "{later} overtook a retry of {earlier} of {key}");
        }
    }
    let odd_end = sights.iter().filter(|sight| sight.id.starts_with("k1.")).map(|sight| sight.at);
    let even_end = sights.iter().filter(|sight| sight.id.starts_with("k2.")).map(|sight| sight.at);
    let (odd_end, even_end) = (odd_end.max().ok_or("no k1")?, even_end.max().ok_or("no k2")?);
    assert!(even_end - odd_end > Duration::from_millis(700), "a key waited for another's retry");
    assert_eq!(working.drain().await?.handled, (KEYS * ROUNDS) as u64);
    Ok(())
}

/// More than any process holds, each with a key of its own or all with one, and what follows is
/// handled all the same.
async fn what_is_due_far_ahead_keeps_no_other_key_from_its_handlers(lab: Lab) -> Checked {
    const LATER: usize = 150;
    let queue = lab::queue().ordered();
    let subscription = Subscription::queue(queue.clone());
    lab.broker().declare(&subscription).await?;
    let producer = lab.broker().producer();
    let later = (0..LATER).map(|number| {
        let key = if number % 2 == 0 { "later".to_owned() } else { format!("later{number}") };
        let envelope = message(&format!("later{number}")).with_key(key);
        producer.send(Outgoing::new(queue.clone(), envelope).with_delay(Duration::from_hours(1)))
    });
    for sent in later.collect::<Vec<_>>() {
        sent.await?;
    }
    let others = messages(40).enumerate();
    lab.publish(queue, others.map(|(number, other)| other.with_key(format!("k{number}")))).await?;
    let (mut seen, service) = Sightings::of(|_| async { Ok(Outcome::Ack) });
    let working = Working::on(&lab, &subscription, service).await?;
    let mut handled: Vec<_> = seen.take(40).await?.into_iter().map(|sight| sight.id).collect();
    handled = lab::sorted(handled);
    assert_eq!(handled, ids(40));
    let report = working.drain().await?;
    assert_eq!((report.handled, report.dead_lettered), (40, 0), "{report}");
    lab.step("all of them are kept");
    let kept = |depth: &Depth| {
        let counts = [depth.ready, depth.in_flight, depth.delayed];
        counts.into_iter().flatten().sum::<u64>() >= LATER as u64
    };
    lab.depth(&subscription, "150 that wait", kept).await
}

async fn rolling_restarts_keep_the_order(lab: Lab) -> Checked {
    const ROUNDS: usize = 40;
    let queue = ordered_queue();
    let subscription = Subscription::queue(queue.clone());
    lab.publish(queue, rounds(ROUNDS)).await?;
    let (mut seen, service) = Sightings::of(|_| async {
        sleep(Duration::from_millis(2)).await;
        Ok(Outcome::Ack)
    });
    let mut workers = Vec::new();
    for _ in 0..2 {
        let other = lab.reconnected().await?;
        workers.push(Working::on(&other, &subscription, service.clone()).await?);
    }
    let (mut sights, mut handled) = (Vec::new(), 0);
    for restart in 0..4 {
        lab.step(format!("restart {restart}, {} seen", sights.len()));
        sights.extend(seen.take(80).await?);
        handled += workers.remove(0).drain().await?.handled;
        let other = lab.reconnected().await?;
        workers.push(Working::on(&other, &subscription, service.clone()).await?);
    }
    lab.step("the rest");
    sights.extend(seen.take(KEYS * ROUNDS - sights.len()).await?);
    in_order(&sights, ROUNDS);
    for worker in workers {
        handled += worker.drain().await?.handled;
    }
    assert_eq!(handled, (KEYS * ROUNDS) as u64, "a drain repeats nothing");
    Ok(())
}

async fn a_crash_keeps_the_order(lab: Lab) -> Checked {
    const ROUNDS: usize = 30;
    let queue = lab::queue().ordered();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    lab.publish(queue, rounds(ROUNDS)).await?;
    let mut sights = Vec::new();
    for crash in 0..3 {
        lab.step(format!("crash {crash}, {} seen", sights.len()));
        let other = lab.reconnected().await?;
        let (mut seen, service) = Sightings::of(|_| async {
            sleep(Duration::from_millis(2)).await;
            Ok(Outcome::Ack)
        });
        let working = Working::on(&other, &subscription, service).await?;
        sights.extend(seen.take(100).await?);
        working.crash(&other).await?;
        sights.extend(seen.rest());
    }
    lab.step("the rest");
    let (mut seen, service) = Sightings::of(|_| async { Ok(Outcome::Ack) });
    let working = Working::on(&lab, &subscription, service).await?;
    let mut distinct: HashSet<_> = sights.iter().map(|sight| sight.id.clone()).collect();
    while distinct.len() < KEYS * ROUNDS {
        let sight = seen.next().await?;
        distinct.insert(sight.id.clone());
        sights.push(sight);
    }
    working.drain().await?;
    in_order(&sights, ROUNDS);
    Ok(())
}
