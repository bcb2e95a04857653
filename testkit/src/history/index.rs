use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::{Event, Fate, Gone, Harm, Record, RunEnd};

/// The process that directs the others.
pub const DIRECTOR: &str = "director";

/// What all processes did, put together: each message with its sending and its runs.
#[derive(Debug, Default)]
pub struct History {
    /// Sorted by time.
    records: Vec<Record>,
    pub(super) messages: BTreeMap<String, Message>,
    /// By message and group, sorted by their starts.
    pub(super) runs: BTreeMap<(String, String), Vec<Run>>,
    pub(super) dead_letters: BTreeMap<(String, String), Vec<DeadLetter>>,
    pub(super) disturbances: BTreeMap<u64, Disturbance>,
    stalls: Vec<Disturbance>,
    pub(super) gone: HashMap<String, (Duration, Gone)>,
    /// The processes that handle messages.
    handlers: HashSet<String>,
    pub(super) due: Option<Duration>,
}

/// A message as its publisher knows it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) to: String,
    pub(super) key: Option<String>,
    pub(super) delay: Duration,
    pub(super) fate: Fate,
    pub(super) by: String,
    pub(super) sent: Duration,
    pub(super) answer: Option<(Duration, Answer)>,
}

#[derive(Debug)]
pub(super) enum Answer {
    Confirmed,
    Refused { class: String },
}

/// A run of a handler.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) by: String,
    pub(super) number: u64,
    pub(super) attempt: u32,
    pub(super) start: Duration,
    pub(super) end: Option<(Duration, RunEnd)>,
}

#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) reason: String,
}

/// Something that went wrong on purpose.
#[derive(Debug)]
pub(super) struct Disturbance {
    what: String,
    /// Empty for all processes.
    on: Vec<String>,
    harm: Harm,
    from: Duration,
    to: Option<Duration>,
}

impl Message {
    pub(super) fn is_confirmed(&self) -> bool {
        matches!(self.answer, Some((_, Answer::Confirmed)))
    }
}

impl Run {
    /// When it acknowledged its message, if it did.
    pub(super) fn acknowledged(&self) -> Option<Duration> {
        match self.end {
            Some((at, RunEnd::Ack)) => Some(at),
            _ => None,
        }
    }
}

impl Disturbance {
    fn meets(&self, process: &str) -> bool {
        self.on.is_empty() || self.on.iter().any(|one| one == process)
    }

    /// Whether it or its aftermath reaches into this time.
    fn reaches(&self, from: Duration, to: Duration, aftermath: Duration) -> bool {
        self.from <= to && self.to.is_none_or(|healed| healed + aftermath >= from)
    }
}

impl History {
    /// Puts records of any order together.
    pub fn new(mut records: Vec<Record>) -> Self {
        records.sort_by_key(|record| record.at);
        let mut history = Self::default();
        for record in &records {
            history.add(record);
        }
        history.records = records;
        history
    }

    fn add(&mut self, record: &Record) {
        let (at, by) = (record.at, &record.by);
        match record.event.clone() {
            Event::Sending { id, to, key, delay, fate } => {
                let delay = Duration::from_millis(delay);
                let by = by.clone();
                let message = Message { to, key, delay, fate, by, sent: at, answer: None };
                self.messages.insert(id, message);
            }
            Event::Confirmed { id } => self.answer(&id, at, Answer::Confirmed),
            Event::Refused { id, class, .. } => self.answer(&id, at, Answer::Refused { class }),
            Event::Started { id, group, attempt, run: number } => {
                let run = Run { by: by.clone(), number, attempt, start: at, end: None };
                self.runs.entry((id, group)).or_default().push(run);
                self.handlers.insert(by.clone());
            }
            Event::Ended { id, group, run: number, end } => {
                let runs = self.runs.entry((id, group)).or_default();
                let run = runs.iter_mut().find(|run| run.by == *by && run.number == number);
                if let Some(run) = run {
                    run.end = Some((at, end));
                }
            }
            Event::DeadLettered { id, group, reason, .. } => {
                self.dead_letters.entry((id, group)).or_default().push(DeadLetter { reason });
            }
            Event::Gone { process, how } => _ = self.gone.insert(process, (at, how)),
            Event::Disturbed { number, what, on, harm } => {
                let disturbance = Disturbance { what, on, harm, from: at, to: None };
                self.disturbances.insert(number, disturbance);
            }
            Event::Healed { number } => {
                if let Some(disturbance) = self.disturbances.get_mut(&number) {
                    disturbance.to = Some(at);
                }
            }
            Event::Stalled { millis } => {
                let from = at.saturating_sub(Duration::from_millis(millis));
                // Nobody else tells whether the broker stood still.
                let on = if *by == DIRECTOR { Vec::new() } else { vec![by.clone()] };
                let (what, harm) = ("stall".to_owned(), Harm::Interrupts);
                self.stalls.push(Disturbance { what, on, harm, from, to: Some(at) });
            }
            Event::Due => self.due = Some(at),
            Event::Born { process, handles } => {
                if handles {
                    self.handlers.insert(process);
                }
            }
            Event::Failed { .. } | Event::Quiet => {}
        }
    }

    fn answer(&mut self, id: &str, at: Duration, answer: Answer) {
        if let Some(message) = self.messages.get_mut(id) {
            message.answer = Some((at, answer));
        }
    }

    /// All records, sorted by time.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn runs_of(&self, id: &str, group: &str) -> &[Run] {
        self.runs.get(&(id.to_owned(), group.to_owned())).map_or(&[], Vec::as_slice)
    }

    pub(super) fn dead_letters_of(&self, id: &str, group: &str) -> &[DeadLetter] {
        self.dead_letters.get(&(id.to_owned(), group.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// When a run was over: at its end, at that of its process, or never.
    pub(super) fn over(&self, run: &Run) -> Duration {
        match (&run.end, self.gone.get(&run.by)) {
            (Some((at, _)), _) | (None, Some((at, _))) => *at,
            (None, None) => Duration::MAX,
        }
    }

    /// How many disturbances interrupted something within this time, of this process or of any that
    /// handles messages.
    pub(super) fn interruptions(
        &self,
        process: Option<&str>,
        (from, to): (Duration, Duration),
        aftermath: Duration,
    ) -> usize {
        let meets = |one: &Disturbance| match process {
            Some(process) => one.meets(process),
            None => self.meets_handlers(one),
        };
        let interrupts = |one: &&Disturbance| {
            one.harm != Harm::None && meets(one) && one.reaches(from, to, aftermath)
        };
        self.disturbances.values().chain(&self.stalls).filter(interrupts).count()
    }

    /// How many of them met all processes at once.
    pub(super) fn outages(&self, (from, to): (Duration, Duration), aftermath: Duration) -> usize {
        let is_outage = |one: &&Disturbance| {
            one.harm != Harm::None && one.on.is_empty() && one.reaches(from, to, aftermath)
        };
        self.disturbances.values().filter(is_outage).count()
    }

    fn meets_handlers(&self, one: &Disturbance) -> bool {
        one.on.is_empty() || one.on.iter().any(|one| self.handlers.contains(one))
    }

    /// How many leases ran out one after the other, within this time, while something was wrong with
    /// those that handle messages.
    pub(super) fn leases(&self, (from, to): (Duration, Duration), lease: Duration) -> usize {
        let interrupts = |one: &&Disturbance| one.harm != Harm::None && self.meets_handlers(one);
        let interrupting = self.disturbances.values().filter(interrupts);
        let fitting = |one: &Disturbance| {
            let end = one.to.map_or(to, |healed| healed.min(to));
            end.saturating_sub(one.from.max(from)).as_nanos() / lease.as_nanos().max(1)
        };
        interrupting.map(|one| usize::try_from(fitting(one)).unwrap_or(usize::MAX)).sum()
    }

    /// Whether the broker may have forgotten what was sent at this time: before it lost its data, or
    /// so soon afterwards that the groups of a topic were not there again.
    pub(super) fn is_forgotten(&self, sent: Duration, grace: Duration) -> bool {
        let mut forgetting = self.disturbances.values().filter(|one| one.harm == Harm::Forgets);
        forgetting.any(|one| one.to.is_none_or(|healed| sent <= healed + grace))
    }

    /// How many disturbances of each kind there were.
    pub fn disturbances(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for one in self.disturbances.values().chain(&self.stalls) {
            let kind = one.what.split_once(' ').map_or(&*one.what, |(kind, _)| kind);
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }

    /// All that is known about a message or a process, a line each, with what went wrong meanwhile.
    pub fn about(&self, subject: &str) -> String {
        let is_about = |record: &&Record| {
            record.event.id() == Some(subject)
                || matches!(&record.event, Event::Gone { process, .. } | Event::Born { process, .. }
                    if process == subject)
        };
        let own: Vec<_> = self.records.iter().filter(is_about).collect();
        let (Some(first), Some(last)) = (own.first(), own.last()) else {
            return format!("    nothing is known about {subject}\n");
        };
        let mut processes: Vec<_> = own.iter().map(|record| &record.by).collect();
        processes.dedup();
        let meanwhile = |record: &Record| match &record.event {
            Event::Disturbed { .. } | Event::Healed { .. } | Event::Stalled { .. } => {
                let around = Duration::from_secs(15);
                record.at + around >= first.at && record.at <= last.at
            }
            Event::Gone { process, .. } => processes.contains(&process) && record.at <= last.at,
            _ => false,
        };
        let mut text = String::new();
        for record in &self.records {
            if is_about(&record) || meanwhile(record) {
                let _ = writeln!(text, "    {}", self.line(record));
            }
        }
        text
    }

    /// A record with its time since the history began.
    pub fn line(&self, record: &Record) -> String {
        let began = self.records.first().map_or(Duration::ZERO, |first| first.at);
        let at = record.at.saturating_sub(began).as_secs_f64();
        format!("{at:9.3} {:<14} {}", record.by, record.event)
    }
}
