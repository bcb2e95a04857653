use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anybroker_core::{Declare, Delivery, Envelope, Hop, Result};
use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicNackOptions};

use crate::error::failed;
use crate::group::{Group, runs};
use crate::link::{apart, while_open};
use crate::publish::{Publishers, Target};
use crate::topology::{Helper, Topology, short};

/// How often the messages of an ordered queue were handed out again after they had come back.
///
/// RabbitMQ's own count says only that a message came back: a crash of the server returns it once for
/// each dead consumer in line, and a channel that is closed returns what no handler has seen. So the
/// runs are counted in a queue of its own that keeps one message, the last [`Record`]. It is written
/// before a message is handed out again, and at the end of a channel of which something comes back
/// although its process lives. The one active consumer of the queue reads and writes it.
pub(crate) struct Runs {
    publishers: Arc<Publishers>,
    group: Arc<Group>,
    queue: String,
    state: Mutex<State>,
    /// Whether a message came that never came back. Most do, and need no lock.
    past: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// What the last consumer wrote, as far as its messages may still come; `None` until it is read.
    former: Option<Record>,
    /// With which number of runs a message that had come back was handed out by this one.
    own: HashMap<String, i64>,
    /// How often those were run that were handed out and come back.
    given_back: HashMap<String, i64>,
    /// Whether there is no queue of runs, and there will be none.
    missing: bool,
    /// Whether something comes back when the channel closes.
    leaves: bool,
    /// Whether something of that was dropped, of which nobody knows whether it was run.
    dropped: bool,
}

/// How often messages that come back were run, less the one time that a crash may have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    /// By what tells a stored copy from others.
    runs: HashMap<String, i64>,
    /// Of all others: -1 where none of them was run, and 0 where they may have been.
    others: i64,
}

impl Record {
    fn read(text: &[u8]) -> Option<Self> {
        let record: serde_json::Value = serde_json::from_slice(text).ok()?;
        let others = record.get("others")?.as_i64()?;
        let runs = record.get("runs")?.as_object()?.iter();
        let runs = runs.filter_map(|(id, runs)| Some((id.clone(), runs.as_i64()?))).collect();
        Some(Self { runs, others })
    }

    fn write(self) -> String {
        serde_json::json!({ "others": self.others, "runs": self.runs }).to_string()
    }

    fn of(&self, id: &str) -> i64 {
        self.runs.get(id).map_or(self.others, |runs| *runs) + 1
    }
}

impl State {
    /// What is true from the next delivery on, until another record is written: the next crash may
    /// end a run of each message that is not listed.
    fn begun(&self) -> Record {
        let mut record = self.former.clone().unwrap_or_default();
        record.others = record.others.max(0);
        record.runs.extend(self.own.clone());
        record
    }

    /// What is true when all that was handed out is finished, and nothing was cut off.
    fn ended(&self) -> Record {
        // Without it nothing had come back before, and nobody was cut off.
        let none = Record { runs: HashMap::new(), others: -1 };
        let mut record = self.former.clone().unwrap_or(none);
        record.runs.extend(self.own.iter().map(|(id, runs)| (id.clone(), runs - 1)));
        record.runs.extend(self.given_back.iter().map(|(id, runs)| (id.clone(), runs - 1)));
        record
    }
}

impl Runs {
    pub(crate) fn new(publishers: &Arc<Publishers>, group: &Arc<Group>, queue: &str) -> Self {
        Self {
            publishers: Arc::clone(publishers),
            group: Arc::clone(group),
            queue: queue.to_owned(),
            state: Mutex::default(),
            past: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message came that never came back: all that did had come before it.
    pub(crate) fn is_past_returned(&self) {
        if self.past.load(Ordering::Relaxed) {
            return;
        }
        self.past.store(true, Ordering::Relaxed);
        if let Some(former) = &mut self.state().former {
            *former = Record { runs: HashMap::new(), others: -1 };
        }
    }

    /// How often a message that came back was run. Where the queue of runs is missing, and this
    /// connection may not make it, that is as often as it came back.
    pub(crate) async fn of(&self, id: &str, came_back: u32) -> u32 {
        if self.state().former.is_none() {
            let read = read(&self.publishers.topology, &self.queue).await;
            let mut state = self.state();
            state.missing = matches!(read, Ok(None)) && !self.may_declare();
            // A count that cannot be read is too low, which repeats a message more often.
            let read = read.unwrap_or_else(|error| {
                tracing::warn!(%error, queue = %self.queue, "the attempts of what came back are not known");
                None
            });
            state.former = Some(read.unwrap_or_default());
            self.past.store(false, Ordering::Relaxed);
        }
        let state = self.state();
        match &state.former {
            Some(former) if !state.missing => u32::try_from(former.of(id)).unwrap_or(0),
            _ => came_back,
        }
    }

    fn may_declare(&self) -> bool {
        self.publishers.topology.settings.options.declare == Declare::Create
    }

    /// Writes that these messages, which came back after so many runs, are handed out again.
    pub(crate) async fn hand_out(&self, messages: Vec<(String, u32)>) {
        let record = {
            let mut state = self.state();
            for (id, runs) in messages {
                if let Some(former) = &mut state.former {
                    former.runs.remove(&id);
                }
                state.own.insert(id, runs.into());
            }
            state.begun()
        };
        if let Err(error) = self.write(record).await {
            tracing::warn!(%error, queue = %self.queue, "attempts were not stored; a crash now repeats them");
        }
    }

    /// Something comes back that was not handed out.
    pub(crate) fn leave(&self) {
        self.state().leaves = true;
    }

    /// A message that was handed out comes back after so many runs.
    pub(crate) fn leave_after(&self, id: String, runs: u32) {
        let mut state = self.state();
        state.given_back.insert(id, runs.into());
        state.leaves = true;
    }

    /// A message comes back that was dropped: whether a handler has seen it is not known.
    pub(crate) fn leave_dropped(&self) {
        let mut state = self.state();
        (state.leaves, state.dropped) = (true, true);
    }

    /// Writes how often what comes back was run, before the channel closes. Without that it would
    /// count as after a crash.
    pub(crate) async fn end(&self) {
        let record = {
            let state = self.state();
            if !state.leaves || state.dropped {
                return;
            }
            state.ended()
        };
        if let Err(error) = self.write(record).await {
            tracing::warn!(%error, queue = %self.queue, "attempts were not stored; what comes back counts one");
        }
    }

    async fn write(&self, record: Record) -> Result<()> {
        if !self.may_declare() {
            let known = self.publishers.topology.count(&runs(&self.queue)).await?;
            self.state().missing = known.is_none();
            if known.is_none() {
                return Ok(());
            }
        }
        let record = Envelope::new("anybroker.runs", record.write());
        let helper = Helper::Runs { queue: self.queue.clone() };
        let target = Target::helper(&self.group, helper)?;
        self.publishers.send(target, record, Hop::default()).await
    }
}

/// What tells a delivery's copy from others, and how often that was run before this attempt.
pub(crate) fn copy_of(delivery: &Delivery) -> (String, u32) {
    let hop = delivery.hop();
    let runs = delivery.attempt().saturating_sub(1).saturating_sub(hop.attempts);
    (copy_id(Some(hop), delivery.envelope()), runs)
}

/// What tells a stored copy from others.
pub(crate) fn copy_id(hop: Option<&Hop>, envelope: &Envelope) -> String {
    hop.and_then(|hop| hop.id.clone()).unwrap_or_else(|| envelope.id.clone())
}

async fn read(topology: &Arc<Topology>, queue: &str) -> Result<Option<Record>> {
    let name = runs(queue);
    if topology.count(&name).await?.is_none() {
        return Ok(None);
    }
    let channel = topology.link.channel("consume").await?;
    let queue = short(&name)?;
    let read = async move |channel: &Channel| {
        let found = channel.basic_get(queue, BasicGetOptions::default()).await;
        let found = found.map_err(|error| failed("consume", "reading the attempts", error))?;
        let back = BasicNackOptions { requeue: true, multiple: true };
        let back = channel.basic_nack(0, back).await;
        back.map_err(|error| failed("consume", "putting back the attempts", error))?;
        // Closed here, so that it is back before anything else is written.
        let _ = channel.close(200, "OK".into()).await;
        Ok(found)
    };
    let found = apart(async move { while_open("consume", &channel, read(&channel)).await });
    Ok(found.await?.and_then(|found| Record::read(&found.data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(others: i64, runs: &[(&str, i64)]) -> Record {
        let runs = runs.iter().map(|(id, runs)| ((*id).to_owned(), *runs)).collect();
        Record { runs, others }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record(-1, &[("a", 3), ("\"", -1)]);
        assert_eq!(Record::read(record.clone().write().as_bytes()), Some(record));
    }

    #[test]
    fn a_crash_counts_one_run_of_what_may_have_been_run() {
        let mut state = State::default();
        assert_eq!(state.begun().of("never came back"), 1);
        state.own.insert("came back".to_owned(), 2);
        assert_eq!(state.begun().of("came back"), 3);
    }

    #[test]
    fn an_end_counts_what_was_run() {
        let mut state = State::default();
        state.own.insert("given back".to_owned(), 2);
        state.given_back.insert("failed to settle".to_owned(), 3);
        let ended = state.ended();
        let counts = ["not seen", "given back", "failed to settle"].map(|id| ended.of(id));
        assert_eq!(counts, [0, 2, 3]);
        // Who comes next begins with it, and may crash at once.
        let next = State { former: Some(ended), ..State::default() };
        assert_eq!(next.begun().of("not seen"), 1);
    }

    #[test]
    fn what_a_crash_returned_keeps_its_count_through_an_end() {
        let former = Some(record(0, &[("third", 2)]));
        let state = State { former, ..State::default() };
        assert_eq!((state.ended().of("third"), state.ended().of("second")), (3, 1));
    }
}
