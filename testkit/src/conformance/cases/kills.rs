//! Processes are killed with -9, again and again: every confirmed message is handled, as two
//! ledgers show.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anybroker_core::{Outcome, Redrive, SettlementProof, Subscription};
use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::Child;
use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::child::{Folder, Handling};
use crate::conformance::lab::{self, Lab, PATIENCE, message};
use crate::history::Ledger;

cases! {
    a_consumer_killed_ten_times_loses_nothing: Need::Processes, within 150;
    a_publisher_killed_ten_times_loses_nothing_confirmed: Need::Processes, within 150;
    a_consumer_of_a_topic_killed_ten_times_loses_nothing: Need::ProcessesOnTopics, within 150;
    a_publisher_to_a_topic_killed_ten_times_loses_nothing_confirmed: Need::ProcessesOnTopics, within 150;
}

const KILLS: usize = 10;
const MESSAGES: usize = 3000;
/// What the worker of a child holds at most.
const HELD: usize = 96;

/// Where processes are killed: after so many more lines of the ledger, and a moment.
struct KillPoints {
    random: Rng,
    seed: u64,
    within: usize,
}

impl KillPoints {
    /// Random, within so many lines, and the same again with the seed in `ANYBROKER_TEST_SEED`.
    fn new(within: usize) -> Checked<Self> {
        let seed = match std::env::var("ANYBROKER_TEST_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => fastrand::u64(..),
        };
        Ok(Self { random: Rng::with_seed(seed), seed, within })
    }

    /// Waits for the next point.
    async fn next(&mut self, child: &mut Child, ledger: &Path) -> Checked<usize> {
        let lines = Ledger::read(ledger)?.len() + self.random.usize(1..self.within);
        let end = Instant::now() + PATIENCE;
        loop {
            child.check()?;
            let found = Ledger::read(ledger)?.len();
            if found >= lines {
                sleep(Duration::from_micros(self.random.u64(0..20_000))).await;
                return Ok(found);
            }
            if Instant::now() > end {
                let text = format!("the ledger has {found} lines, not {lines}, in {PATIENCE:?}");
                return Err(text.into());
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn a_consumer_killed_ten_times_loses_nothing(lab: Lab) -> Checked {
    kill_consumers(lab, Subscription::queue(lab::queue())).await
}

async fn a_publisher_killed_ten_times_loses_nothing_confirmed(lab: Lab) -> Checked {
    kill_publishers(lab, &Subscription::queue(lab::queue())).await
}

async fn a_consumer_of_a_topic_killed_ten_times_loses_nothing(lab: Lab) -> Checked {
    kill_consumers(lab, Subscription::topic(lab::topic()).group("g")).await
}

async fn a_publisher_to_a_topic_killed_ten_times_loses_nothing_confirmed(lab: Lab) -> Checked {
    kill_publishers(lab, &Subscription::topic(lab::topic()).group("g")).await
}

async fn kill_consumers(lab: Lab, subscription: Subscription) -> Checked {
    let subscription = &subscription.unlimited_deliveries().lease(Duration::from_secs(3));
    lab.broker().declare(subscription).await?;
    let destination = subscription.destination();
    let folder = Folder::new(destination.name())?;
    let (confirmed, handled) = (folder.path("confirmed"), folder.path("handled"));
    let mut points = KillPoints::new(2 * MESSAGES / KILLS)?;
    let publishing = {
        let (lab, ledger) = (lab.clone(), Ledger::open(&confirmed)?);
        let destination = destination.clone();
        tokio::spawn(async move {
            for burst in 0..MESSAGES / 50 {
                let ids: Vec<_> = (burst * 50..(burst + 1) * 50).map(id_of).collect();
                lab.publish(destination.clone(), ids.iter().map(|id| message(id))).await?;
                ledger.append(ids.iter().map(String::as_str))?;
            }
            Checked::Ok(())
        })
    };
    for kill in 0..KILLS {
        let mut child = Child::consumer(lab.target(), subscription, &handled)?;
        lab.step(format!("seed {}: kill {kill}", points.seed));
        let lines = points.next(&mut child, &handled).await?;
        child.check()?;
        child.kill()?;
        lab.step(format!("seed {}: kill {kill} was after {lines} lines", points.seed));
    }
    publishing.await??;
    let mut last = Child::consumer(lab.target(), subscription, &handled)?;
    let confirmed = Ledger::read(&confirmed)?.into_iter();
    let (dead, living): (HashSet<_>, HashSet<_>) = confirmed.partition(|id| id.starts_with("dead"));
    assert_eq!(dead.len() + living.len(), MESSAGES);
    missing_none(&mut last, &handled, |handling| {
        let ended: HashSet<_> = handling.ends.iter().collect();
        living.iter().filter(|id| !ended.contains(id)).count()
    })
    .await?;
    lab.step(format!("seed {}: all is settled", points.seed));
    let is = |value: Option<u64>| value.is_none_or(|value| value == 0);
    lab.depth(subscription, "of dead letters alone", |depth| {
        is(depth.ready) && is(depth.in_flight) && is(depth.delayed)
    })
    .await?;
    let before = Handling::read(&handled)?;
    let duplicates = before.ends.len() - living.len();
    println!(
        "{}: {KILLS} kills of a consumer, seed {}: {MESSAGES} confirmed, {} started, {} handled, {duplicates} of them again",
        lab.target(),
        points.seed,
        before.starts.len(),
        living.len(),
    );
    let proof = lab.broker().capabilities().settlement;
    // What is recorded here becomes durable a tenth of a second later: so much more is repeated.
    let held = if proof == SettlementProof::Recorded { 2 * HELD } else { HELD };
    assert!(duplicates <= KILLS * held, "{duplicates} were handled again");
    lab.step(format!("seed {}: the dead letters", points.seed));
    lab.broker().redrive(subscription, &Redrive::all()).await?;
    let again = |handling: &Handling| -> HashSet<String> {
        handling.starts[before.starts.len()..].iter().map(|(id, _)| id.clone()).collect()
    };
    let handling =
        missing_none(&mut last, &handled, |handling| dead.difference(&again(handling)).count())
            .await?;
    assert_eq!(again(&handling), dead, "what was handled came again");
    Ok(())
}

/// What is published as this number.
fn id_of(number: usize) -> String {
    let what = match number % 10 {
        3 => "later",
        6 => "soon",
        9 => "dead",
        _ => "m",
    };
    format!("{what}{number}")
}

/// Waits until nothing is missing any more, as long as something happens.
async fn missing_none(
    child: &mut Child,
    ledger: &Path,
    missing: impl Fn(&Handling) -> usize,
) -> Checked<Handling> {
    let mut end = (0, Instant::now() + PATIENCE);
    loop {
        child.check()?;
        let handling = Handling::read(ledger)?;
        let count = missing(&handling);
        if count == 0 {
            return Ok(handling);
        }
        if handling.starts.len() > end.0 {
            end = (handling.starts.len(), Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < end.1, "{count} confirmed messages are lost");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn kill_publishers(lab: Lab, subscription: &Subscription) -> Checked {
    lab.broker().declare(subscription).await?;
    let folder = Folder::new(subscription.destination().name())?;
    let ledger = folder.path("confirmed");
    let mut points = KillPoints::new(200)?;
    for kill in 0..KILLS {
        lab.step(format!("seed {}: kill {kill}", points.seed));
        let run = format!("r{kill}");
        let mut child = Child::publisher(lab.target(), subscription, &ledger, &run)?;
        points.next(&mut child, &ledger).await?;
        child.check()?;
        child.kill()?;
    }
    let confirmed: HashSet<_> = Ledger::read(&ledger)?.into_iter().collect();
    let mut missing = confirmed.clone();
    let mut consumer = lab.consume(subscription).await?;
    let mut received = 0;
    while !missing.is_empty() {
        lab.step(format!("seed {}: {} of {}", points.seed, missing.len(), confirmed.len()));
        let delivery = consumer.next().await?;
        missing.remove(&delivery.envelope().id);
        received += 1;
        delivery.settle(Outcome::Ack).await?;
    }
    println!(
        "{}: {KILLS} kills of a publisher, seed {}: {} confirmed, {received} received until the last of them",
        lab.target(),
        points.seed,
        confirmed.len(),
    );
    Ok(())
}
