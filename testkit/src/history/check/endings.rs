use std::collections::BTreeMap;

use super::{Checker, Findings, Wrong};
use crate::history::index::{DeadLetter, Run};
use crate::history::{Fate, Gone, History};

impl Checker {
    /// What became of each message in the end, and of each process.
    pub(super) fn endings(&self, history: &History, findings: &mut Findings) {
        let forgotten = history.messages.values();
        findings.counts.forgotten =
            forgotten.filter(|message| self.is_forgotten(history, message)).count();
        for (id, message, group) in self.expected(history) {
            let runs = history.runs_of(id, &group.name);
            let handled = runs.iter().filter_map(Run::acknowledged).min();
            let letters = history.dead_letters_of(id, &group.name);
            findings.counts.handled += usize::from(handled.is_some());
            findings.counts.dead_twice += letters.len().saturating_sub(1);
            let group = &group.name;
            match (&message.fate, letters.first(), handled) {
                (Fate::Handled, Some(letter), _) => {
                    let text =
                        format!("{group} gave it up ({}), though it is sound", letter.reason);
                    findings.add(Wrong::GivenUp, id, text);
                }
                (Fate::Handled, None, Some(at)) => {
                    if message.is_confirmed() && history.due.is_some_and(|due| at > due) {
                        let text = format!("{group} handled it only after the quiet time");
                        findings.add(Wrong::Stuck, id, text);
                    }
                }
                (Fate::DeadLettered { reason, runs: needed }, Some(letter), _) => {
                    findings.counts.dead_lettered += 1;
                    self.judge_letter(history, findings, (id, group), (reason, *needed), letter);
                }
                (Fate::Handled | Fate::DeadLettered { .. }, None, _) => {
                    if message.is_confirmed() {
                        let end = match &message.fate {
                            Fate::Handled => "handled it",
                            Fate::DeadLettered { .. } => "has it in its dead-letter queue",
                        };
                        findings.add(
                            Wrong::Lost,
                            id,
                            format!("confirmed, and {group} never {end}"),
                        );
                    }
                }
            }
        }
        for (process, (_, how)) in history.gone.iter().collect::<BTreeMap<_, _>>() {
            match how {
                Gone::Killed | Gone::Told => {}
                Gone::Overdue => findings.add(Wrong::Process, process, "told to end, it did not"),
                Gone::ByItself(status) => {
                    findings.add(Wrong::Process, process, format!("ended by itself: {status}"));
                }
            }
        }
    }

    fn judge_letter(
        &self,
        history: &History,
        findings: &mut Findings,
        (id, group): (&str, &str),
        (reason, needed): (&str, u32),
        letter: &DeadLetter,
    ) {
        if letter.reason != reason {
            let text = format!("{group} gave it up as {}, not as {reason}", letter.reason);
            findings.add(Wrong::GivenUp, id, text);
            return;
        }
        let runs = history.runs_of(id, group);
        let sent = history.messages.get(id).map_or_else(Default::default, |message| message.sent);
        let last = runs.last().map_or(sent, |run| run.start);
        // What was handed out when its process died may have been a run, and counts as one.
        let allowed = history.interruptions(None, (sent, last), self.aftermath);
        if runs.len() + allowed < needed as usize {
            let text =
                format!("{group} gave it up after {} runs, not {needed}: {reason}", runs.len());
            findings.add(Wrong::GivenUp, id, text);
        }
    }
}
