use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that happened, as one line of a ledger.
///
/// A step with an effect is noted twice: the intent before it, and the result after it. So whatever
/// moment a process is killed at, the history says what it may have done: a send without a result
/// may have been stored, a run without an end may have done its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A publisher is about to send a message.
    Sending {
        /// The message.
        id: String,
        /// The queue or topic.
        to: String,
        /// The ordering key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// How many milliseconds no handler may see it.
        #[serde(default, skip_serializing_if = "is_zero")]
        delay: u64,
        /// How it has to end.
        fate: Fate,
    },
    /// The broker has the message.
    Confirmed {
        /// The message.
        id: String,
    },
    /// The send failed; the broker may have the message all the same.
    Refused {
        /// The message.
        id: String,
        /// The class of the error: `transient`, `ambiguous` or `permanent`.
        class: String,
        /// The error.
        error: String,
    },
    /// A handler starts.
    Started {
        /// The message.
        id: String,
        /// The group that handles it.
        group: String,
        /// The attempt that the library states.
        attempt: u32,
        /// Tells the runs of one process apart.
        run: u64,
    },
    /// A handler has decided what becomes of its message, which is not settled yet.
    Ended {
        /// The message.
        id: String,
        /// The group that handled it.
        group: String,
        /// The run that ends.
        run: u64,
        /// The decision.
        end: RunEnd,
    },
    /// A message was found in a group's dead-letter queue.
    DeadLettered {
        /// The message.
        id: String,
        /// The group that gave it up.
        group: String,
        /// The code of its reason.
        reason: String,
        /// The error and the attempts that the dead letter states.
        text: String,
    },
    /// A step of a process failed that has to be repeated: a start of its worker, say.
    Failed {
        /// The step.
        doing: String,
        /// The error.
        error: String,
    },
    /// A process was started.
    Born {
        /// Its name, which no other one has.
        process: String,
        /// Whether it handles messages: one that is killed before its first run writes nothing.
        handles: bool,
    },
    /// A process has ended.
    Gone {
        /// Its name.
        process: String,
        /// How it ended.
        how: Gone,
    },
    /// Something goes wrong from here on.
    Disturbed {
        /// Tells the disturbances of a history apart.
        number: u64,
        /// What goes wrong.
        what: String,
        /// The processes that it meets; empty where it meets all of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        on: Vec<String>,
        /// What may come of it.
        harm: Harm,
    },
    /// Something is mended.
    Healed {
        /// The number of the disturbance.
        number: u64,
    },
    /// The machine let this process stand still for so many milliseconds until now, which excuses
    /// what it missed. Of the process that directs the others it is taken for all of them.
    Stalled {
        /// How long.
        millis: u64,
    },
    /// Everything is mended and published: the quiet time begins.
    Quiet,
    /// The quiet time is over: everything should have been handled.
    Due,
}

/// How a message has to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Handled by each group.
    Handled,
    /// In the dead-letter queue of each group.
    DeadLettered {
        /// The code of the reason that its dead letter must state.
        reason: String,
        /// How many runs of a handler have to fail first.
        runs: u32,
    },
}

/// What a handler decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// The message is handled.
    Ack,
    /// The message comes again, this many milliseconds later at the earliest.
    Retry(u64),
    /// The message is given back, uncounted, for this many milliseconds at least.
    Release(u64),
    /// The message is given up.
    DeadLetter(String),
    /// The handler failed, and no layer judged the error.
    Error(String),
    /// The handler was dropped before it ended.
    Dropped,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gone {
    /// It was killed.
    Killed,
    /// It was told to end, and did.
    Told,
    /// It was told to end and did not in time, so it was killed.
    Overdue,
    /// It ended by itself, with this status.
    ByItself(String),
}

/// What a disturbance excuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// Nothing: whatever is slow, late or skewed must be coped with.
    None,
    /// Publishes fail, and deliveries come again.
    Interrupts,
    /// It interrupts, and what the broker had is gone.
    Forgets,
}

/// An event, when it happened, and in whose ledger it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Since the machine started, by a clock that all processes share and nobody sets.
    pub at: Duration,
    /// The process that wrote it down.
    pub by: String,
    /// What happened.
    pub event: Event,
}

impl Event {
    /// The message that it is about, if it is about one.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Sending { id, .. }
            | Self::Confirmed { id }
            | Self::Refused { id, .. }
            | Self::Started { id, .. }
            | Self::Ended { id, .. }
            | Self::DeadLettered { id, .. } => Some(id),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sending { id, to, key, delay, fate } => {
                write!(f, "sends {id} to {to}")?;
                if let Some(key) = key {
                    write!(f, ", key {key}")?;
                }
                if *delay > 0 {
                    write!(f, ", delayed by {delay} ms")?;
                }
                match fate {
                    Fate::Handled => Ok(()),
                    Fate::DeadLettered { reason, .. } => write!(f, ", to end as {reason}"),
                }
            }
            Self::Confirmed { id } => write!(f, "{id} is confirmed"),
            Self::Refused { id, class, error } => write!(f, "{id} is refused ({class}): {error}"),
            Self::Started { id, group, attempt, run } => {
                write!(f, "{group}: run {run} starts with {id}, attempt {attempt}")
            }
            Self::Ended { id, group, run, end } => {
                write!(f, "{group}: run {run} ends with {id}: {end:?}")
            }
            Self::DeadLettered { id, group, reason, text } => {
                write!(f, "{group}: {id} is a dead letter: {reason}, {text}")
            }
            Self::Failed { doing, error } => write!(f, "{doing} failed: {error}"),
            Self::Born { process, .. } => write!(f, "{process} is started"),
            Self::Gone { process, how } => write!(f, "{process} is gone: {how:?}"),
            Self::Disturbed { number, what, on, .. } => {
                write!(f, "#{number} {what}")?;
                if on.is_empty() { Ok(()) } else { write!(f, " on {}", on.join(", ")) }
            }
            Self::Healed { number } => write!(f, "#{number} is healed"),
            Self::Stalled { millis } => write!(f, "the machine held it up for {millis} ms"),
            Self::Quiet => f.write_str("all is healed and published"),
            Self::Due => f.write_str("the quiet time is over"),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
