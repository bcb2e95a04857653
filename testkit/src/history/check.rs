mod delays;
mod endings;
mod order;
mod publishes;
mod runs;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::History;
use super::index::Message;

/// Judges a history.
///
/// What it knows of the scenario are its groups, and what it allows is what no broker can avoid: a
/// message may be handled again, or a publish be refused, around something that went wrong.
#[derive(Debug, Clone)]
pub struct Checker {
    groups: Vec<Group>,
    aftermath: Duration,
    tolerance: Duration,
    /// How many consumers of an unordered group count what interrupts all of them.
    counting: usize,
    /// Whether each process counts the attempts of an ordered group for itself.
    by_process: bool,
    /// How long a hand-out whose answer was lost hides its message.
    lease: Option<Duration>,
}

/// A group that handles what is sent to a queue or topic.
#[derive(Debug, Clone)]
struct Group {
    name: String,
    destination: String,
    is_ordered: bool,
}

/// What is wrong with a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// Confirmed, and never handled or dead-lettered.
    Lost,
    /// Handled only after the quiet time, by other processes.
    Stuck,
    /// Handled again although nothing interrupted its handling.
    Doubled,
    /// Handled twice at the same time, although nothing had taken its delivery away.
    AtOnce,
    /// Handled before an earlier message of its key was.
    Reordered,
    /// Handled before its delay was over, or retried before its wait was.
    Early,
    /// In the dead-letter queue without a cause, or with another reason than its own.
    GivenUp,
    /// Its attempt is not the number of its runs.
    Attempts,
    /// Its publish was refused although nothing was wrong, or for good.
    Refused,
    /// Its publish was never answered, though its process ended in order.
    Unanswered,
    /// The process ended by itself, or did not when it was told to.
    Process,
    /// A step of a process failed although nothing was wrong.
    Failed,
    /// Handled, and nobody sent it.
    Unknown,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The kind.
    pub wrong: Wrong,
    /// The message or process; [`History::about`] tells what is known about it.
    pub subject: String,
    /// The other message that it collided with, if there is one.
    pub other: Option<String>,
    /// What was expected, and what was found.
    pub text: String,
}

/// What a history comes to.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is wrong, the worst first.
    pub violations: Vec<Violation>,
    /// What was counted, wrong or not.
    pub counts: Counts,
}

/// Sums of a history.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were sent.
    pub sent: usize,
    /// Messages that were confirmed.
    pub confirmed: usize,
    /// Sends that failed.
    pub refused: usize,
    /// Messages that the broker was made to forget, which nothing more is asked of.
    pub forgotten: usize,
    /// Runs of handlers.
    pub runs: usize,
    /// Messages that a group handled.
    pub handled: usize,
    /// Messages that a group gave up as they had to be.
    pub dead_lettered: usize,
    /// Runs that handled a message once more, explained by something that went wrong.
    pub again: usize,
    /// Those of them at the same time as another run.
    pub at_once: usize,
    /// Messages that were probably stored twice by a publish that was disturbed.
    pub stored_twice: usize,
    /// Runs whose attempt was higher than the number of runs, explained by something that went wrong.
    pub overcounted: usize,
    /// Dead letters that were stored twice.
    pub dead_twice: usize,
}

impl Checker {
    /// A checker that knows no group. An interruption may have consequences for as long as
    /// `aftermath` after it was healed: leases, sessions and timeouts that run out.
    pub fn new(aftermath: Duration) -> Self {
        // The clocks of brokers count in milliseconds.
        let tolerance = Duration::from_millis(20);
        let (groups, counting, by_process, lease) = (Vec::new(), 1, false, None);
        Self { groups, aftermath, tolerance, counting, by_process, lease }
    }

    /// So many consumers share each group, and what ends all of them at once may count as an attempt
    /// once for each in a group without order: a broker that has not noticed yet hands what one of
    /// them held to the next (RabbitMQ).
    pub fn counts_each_of(mut self, consumers: usize) -> Self {
        self.counting = consumers.max(1);
        self
    }

    /// In a group with order the attempts of a message begin anew in another process, however the one
    /// before it ended: a broker that keeps a message's place keeps no count of ours (FIFO of SQS).
    pub fn counts_by_process(mut self) -> Self {
        self.by_process = true;
        self
    }

    /// A hand-out counts where its answer was lost too, and hides its message for this long: what
    /// lasts longer than that counts again (SQS).
    pub fn counts_each_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Adds a group of a queue or topic.
    pub fn group(mut self, name: &str, destination: &str, is_ordered: bool) -> Self {
        let (name, destination) = (name.to_owned(), destination.to_owned());
        self.groups.push(Group { name, destination, is_ordered });
        self
    }

    /// Finds what is wrong.
    pub fn check(&self, history: &History) -> Findings {
        let mut findings = Findings::default();
        self.publishes(history, &mut findings);
        self.endings(history, &mut findings);
        self.runs(history, &mut findings);
        self.delays(history, &mut findings);
        self.order(history, &mut findings);
        findings.violations.sort_by(|a, b| (a.wrong, &a.subject).cmp(&(b.wrong, &b.subject)));
        findings
    }

    /// The groups that have to handle a message, each with the message, but for what was forgotten.
    fn expected<'a>(
        &'a self,
        history: &'a History,
    ) -> impl Iterator<Item = (&'a str, &'a Message, &'a Group)> {
        let judged = history.messages.iter();
        let judged = judged.filter(|(_, message)| !self.is_forgotten(history, message));
        judged.flat_map(|(id, message)| {
            let groups = self.groups.iter().filter(|group| group.destination == message.to);
            groups.map(move |group| (id.as_str(), message, group))
        })
    }

    fn is_forgotten(&self, history: &History, message: &Message) -> bool {
        history.is_forgotten(message.sent, self.aftermath)
    }
}

impl Findings {
    fn add(&mut self, wrong: Wrong, subject: &str, text: impl Into<String>) {
        let subject = subject.to_owned();
        self.violations.push(Violation { wrong, subject, other: None, text: text.into() });
    }

    /// How many things are wrong, by kind.
    pub fn kinds(&self) -> BTreeMap<Wrong, usize> {
        let mut kinds = BTreeMap::new();
        for violation in &self.violations {
            *kinds.entry(violation.wrong).or_default() += 1;
        }
        kinds
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Stuck => "stuck",
            Self::Doubled => "doubled",
            Self::AtOnce => "twice at once",
            Self::Reordered => "reordered",
            Self::Early => "early",
            Self::GivenUp => "given up",
            Self::Attempts => "attempts",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Process => "process",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {} · confirmed {} · refused {} · runs {} · handled {} · dead-lettered {}",
            self.sent, self.confirmed, self.refused, self.runs, self.handled, self.dead_lettered
        )?;
        for (name, count) in [
            ("forgotten", self.forgotten),
            ("handled again", self.again),
            ("at once", self.at_once),
            ("stored twice", self.stored_twice),
            ("attempts too high", self.overcounted),
            ("dead-lettered twice", self.dead_twice),
        ] {
            if count > 0 {
                write!(f, " · {name} {count}")?;
            }
        }
        Ok(())
    }
}
