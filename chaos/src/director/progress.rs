use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anybroker::BoxError;
use anybroker_testkit::history::{Event, Harm, Reader, RunEnd};
use tokio::time::{Instant, sleep};

use super::stage::Stage;
use crate::scenario::{AFTERMATH, Part};

/// Where a run stands: what was confirmed and is not yet handled by every group.
#[derive(Debug)]
pub(super) struct Progress {
    reader: Reader,
    parts: Vec<Part>,
    began: Instant,
    time: Duration,
    said: Instant,
    counts: [usize; 3],
    /// Where each message goes that is not confirmed.
    sent: HashMap<String, Part>,
    /// Confirmed, with the group that has to handle it.
    open: HashSet<(String, String)>,
    done: HashSet<(String, String)>,
    /// The disturbance by which the broker lost its data, and until when what it had is forgotten.
    forgetting: Option<u64>,
    forgotten: Duration,
}

impl Progress {
    pub(super) fn new(folder: &Path, parts: &[Part], time: Duration) -> Self {
        Self {
            reader: Reader::new(folder),
            parts: parts.to_vec(),
            began: Instant::now(),
            time,
            said: Instant::now(),
            counts: [0; 3],
            sent: HashMap::new(),
            open: HashSet::new(),
            done: HashSet::new(),
            forgetting: None,
            forgotten: Duration::ZERO,
        }
    }

    /// How many confirmed messages a group still has to handle.
    pub(super) fn waiting(&self) -> usize {
        self.open.len()
    }

    fn read(&mut self) -> std::io::Result<()> {
        for record in self.reader.news()? {
            match record.event {
                Event::Sending { id, to, .. } => {
                    self.counts[0] += 1;
                    if let Some(part) = Part::named(&to).filter(|part| self.parts.contains(part)) {
                        self.sent.insert(id, part);
                    }
                }
                Event::Refused { id, .. } => _ = self.sent.remove(&id),
                Event::Confirmed { id } => {
                    self.counts[1] += 1;
                    if let Some(part) = self.sent.remove(&id).filter(|_| record.at > self.forgotten)
                    {
                        let groups = part.subscriptions().into_iter();
                        let each = groups.map(|one| (id.clone(), one.group_name().to_owned()));
                        // Another ledger that is read first may know that it is handled.
                        self.open.extend(each.filter(|one| !self.done.contains(one)));
                    }
                }
                Event::Ended { id, group, end: RunEnd::Ack | RunEnd::DeadLetter(_), .. } => {
                    self.counts[2] += 1;
                    let one = (id, group);
                    self.open.remove(&one);
                    self.done.insert(one);
                }
                Event::Disturbed { number, harm: Harm::Forgets, .. } => {
                    self.forgetting = Some(number);
                }
                // Nothing more is asked of what was confirmed until now.
                Event::Healed { number } if self.forgetting == Some(number) => {
                    self.forgotten = record.at + AFTERMATH;
                    self.open.clear();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Shows where it stands, each half second on a terminal, else every ten.
    pub(super) fn show(&mut self, going_on: &str) -> Result<(), BoxError> {
        self.read()?;
        let mut out = std::io::stderr().lock();
        let [sent, confirmed, handled] = self.counts;
        let line = format!(
            "{:4} s of {} · sent {sent} · confirmed {confirmed} · handled {handled} · waiting {} {going_on}",
            self.began.elapsed().as_secs(),
            self.time.as_secs(),
            self.open.len(),
        );
        if out.is_terminal() {
            write!(out, "\r\x1b[K{line}")?;
            out.flush()?;
        } else if self.said.elapsed() > Duration::from_secs(10) {
            self.said = Instant::now();
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    pub(super) fn say(&self, text: &str) {
        let start = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
        eprintln!("{start}{:4} s · {text}", self.began.elapsed().as_secs());
    }

    pub(super) async fn until_handled(
        &mut self,
        stage: &Stage,
        end: Instant,
    ) -> Result<(), BoxError> {
        loop {
            stage.look_after().await?;
            self.show("")?;
            if self.open.is_empty() || Instant::now() > end {
                return Ok(());
            }
            sleep(Duration::from_millis(250)).await;
        }
    }
}
