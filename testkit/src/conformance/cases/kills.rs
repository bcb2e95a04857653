//! Processes are killed with -9, again and again: every confirmed message is handled, as two
//! ledgers show.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anybroker_core::{Outcome, Subscription};
use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::child::Child;
use crate::conformance::lab::{self, Lab, PATIENCE, message};
use crate::ledger::Ledger;

cases! {
    a_consumer_killed_ten_times_handles_every_confirmed_message: Need::Processes, within 150;
    a_publisher_killed_ten_times_loses_nothing_confirmed: Need::Processes, within 150;
    a_consumer_of_a_topic_killed_ten_times_handles_every_confirmed_message: Need::ProcessesOnTopics, within 150;
    a_publisher_to_a_topic_killed_ten_times_loses_nothing_confirmed: Need::ProcessesOnTopics, within 150;
}

const KILLS: usize = 10;
const MESSAGES: usize = 3000;

/// Where processes are killed: after so many more lines of the ledger, and a moment.
struct KillPoints {
    random: Rng,
    seed: u64,
}

impl KillPoints {
    /// Random, and the same again with the seed in `ANYBROKER_TEST_SEED`.
    fn new() -> Checked<Self> {
        let seed = match std::env::var("ANYBROKER_TEST_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => fastrand::u64(..),
        };
        Ok(Self { random: Rng::with_seed(seed), seed })
    }

    /// Waits for the next point.
    async fn next(&mut self, child: &mut Child, ledger: &Path) -> Checked<usize> {
        let lines = Ledger::read(ledger)?.len() + self.random.usize(1..200);
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

/// A folder for ledgers, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(queue: &str) -> Checked<Self> {
        let path = std::env::temp_dir().join(format!("anybroker-{queue}"));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn a_consumer_killed_ten_times_handles_every_confirmed_message(lab: Lab) -> Checked {
    kill_consumers(lab, &Subscription::queue(lab::queue())).await
}

async fn a_publisher_killed_ten_times_loses_nothing_confirmed(lab: Lab) -> Checked {
    kill_publishers(lab, &Subscription::queue(lab::queue())).await
}

async fn a_consumer_of_a_topic_killed_ten_times_handles_every_confirmed_message(
    lab: Lab,
) -> Checked {
    kill_consumers(lab, &Subscription::topic(lab::topic()).group("g")).await
}

async fn a_publisher_to_a_topic_killed_ten_times_loses_nothing_confirmed(lab: Lab) -> Checked {
    kill_publishers(lab, &Subscription::topic(lab::topic()).group("g")).await
}

async fn kill_consumers(lab: Lab, subscription: &Subscription) -> Checked {
    lab.broker().declare(subscription).await?;
    let destination = subscription.destination();
    let folder = Folder::new(destination.name())?;
    let (confirmed, handled) = (folder.0.join("confirmed"), folder.0.join("handled"));
    let mut points = KillPoints::new()?;
    let publishing = {
        let (lab, ledger) = (lab.clone(), Ledger::open(&confirmed)?);
        let destination = destination.clone();
        tokio::spawn(async move {
            for burst in 0..MESSAGES / 50 {
                let ids: Vec<_> = (burst * 50..(burst + 1) * 50).map(|n| format!("m{n}")).collect();
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
        child.kill()?;
        lab.step(format!("seed {}: kill {kill} was after {lines} lines", points.seed));
    }
    publishing.await??;
    let mut last = Child::consumer(lab.target(), subscription, &handled)?;
    let confirmed: HashSet<_> = Ledger::read(&confirmed)?.into_iter().collect();
    assert_eq!(confirmed.len(), MESSAGES);
    let mut end = (0, Instant::now() + PATIENCE);
    loop {
        last.check()?;
        let lines = Ledger::read(&handled)?;
        let distinct: HashSet<_> = lines.iter().cloned().collect();
        let missing = confirmed.difference(&distinct).count();
        if missing == 0 {
            println!(
                "{}: {KILLS} kills of a consumer, seed {}: {} confirmed, {} handled, {} duplicates",
                lab.target(),
                points.seed,
                confirmed.len(),
                distinct.len(),
                lines.len() - distinct.len(),
            );
            return Ok(());
        }
        if lines.len() > end.0 {
            end = (lines.len(), Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < end.1, "{missing} confirmed messages were never handled");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn kill_publishers(lab: Lab, subscription: &Subscription) -> Checked {
    lab.broker().declare(subscription).await?;
    let folder = Folder::new(subscription.destination().name())?;
    let ledger = folder.0.join("confirmed");
    let mut points = KillPoints::new()?;
    for kill in 0..KILLS {
        lab.step(format!("seed {}: kill {kill}", points.seed));
        let run = format!("r{kill}");
        let mut child = Child::publisher(lab.target(), subscription, &ledger, &run)?;
        points.next(&mut child, &ledger).await?;
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
