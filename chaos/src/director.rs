//! Runs the scenario: starts what takes part, does the faults of the plan, heals them, waits until
//! everything is handled, and has the history judged.

mod dead_letters;
mod faults;
mod progress;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anybroker::BoxError;
use anybroker_testkit::history::{Event, Findings, History, Reader};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use self::progress::Progress;
use self::stage::Stage;
use crate::plan::{Step, Wish};
use crate::scenario::{self, Part};
use crate::server::Site;

/// What to run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) site: Site,
    pub(crate) wish: Wish,
    pub(crate) parts: Vec<Part>,
    pub(crate) consumers: usize,
    pub(crate) publishers: usize,
    pub(crate) per_second: u32,
    /// How long everything may take to be handled once all is healed.
    pub(crate) quiet: Duration,
    /// An empty folder for the history.
    pub(crate) folder: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) history: History,
    pub(crate) findings: Findings,
    /// How long it took until everything was handled.
    pub(crate) settled: Duration,
}

/// How long publishes go on after the last fault, so that one that nobody heals shows.
const AFTER: Duration = Duration::from_secs(3);

/// How long a process that was told to end may take: its drain, the flush and the close, when the
/// broker is slow.
pub(super) const END: Duration = Duration::from_secs(45);

impl Run {
    /// Runs until the plan is over or `stop` turns true, which ends the faults early.
    pub(crate) async fn perform(
        self,
        plans: [Vec<Step>; 2],
        mut stop: watch::Receiver<bool>,
    ) -> Result<Ended, BoxError> {
        let checker = self.site.counted(scenario::checker(&self.parts), self.consumers);
        let (quiet, parts, folder) = (self.quiet, self.parts.clone(), self.folder.clone());
        let time = self.wish.time;
        let stage = Arc::new(Stage::build(self).await?);
        let began = Instant::now();
        let mut lanes = tokio::task::JoinSet::new();
        for plan in plans {
            lanes.spawn(stage.clone().play(plan, began, stop.clone()));
        }
        let mut progress = Progress::new(&folder, &parts, time);
        while began.elapsed() < time && !*stop.borrow_and_update() || !lanes.is_empty() {
            sleep(Duration::from_millis(500)).await;
            stage.look_after().await?;
            progress.show(&stage.going_on())?;
            while let Some(played) = lanes.try_join_next() {
                played??;
            }
        }
        stage.heal().await?;
        sleep(AFTER).await;
        progress.say("all is healed: the publishers end");
        stage.end_publishers().await?;
        stage.note(&Event::Quiet)?;

        let since = Instant::now();
        progress.say("waiting until everything is handled");
        progress.until_handled(&stage, since + quiet).await?;
        let settled = since.elapsed();
        stage.note(&Event::Due)?;
        if progress.waiting() > 0 {
            progress.say(&format!("{} were not handled: with new consumers", progress.waiting()));
            stage.replace_consumers()?;
            progress.until_handled(&stage, Instant::now() + quiet).await?;
        }
        progress.say("the consumers end");
        stage.end_consumers().await?;
        progress.say("looking at the dead letters");
        dead_letters::note(&stage, &parts).await?;
        stage.close()?;

        let history = History::new(Reader::new(&folder).news()?);
        let findings = checker.check(&history);
        Ok(Ended { history, findings, settled })
    }
}
