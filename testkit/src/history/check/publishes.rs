use std::time::Duration;

use super::{Checker, Findings, Wrong};
use crate::history::index::{Answer, Message};
use crate::history::{Event, Gone, History};

impl Checker {
    /// What publishers were answered.
    pub(super) fn publishes(&self, history: &History, findings: &mut Findings) {
        for (id, message) in &history.messages {
            findings.counts.sent += 1;
            match &message.answer {
                Some((_, Answer::Confirmed)) => findings.counts.confirmed += 1,
                Some((at, Answer::Refused { class })) => {
                    findings.counts.refused += 1;
                    let is_excused = self.is_disturbed(history, message, *at);
                    if !is_excused {
                        findings.add(Wrong::Refused, id, "refused though nothing was wrong");
                    } else if class == "permanent" && !self.is_forgotten(history, message) {
                        findings.add(Wrong::Refused, id, "refused for good, though it is valid");
                    }
                }
                None => {
                    let how = history.gone.get(&message.by).map(|(_, how)| how);
                    if matches!(how, Some(Gone::Told)) {
                        findings.add(Wrong::Unanswered, id, "never answered");
                    }
                }
            }
        }
        for record in history.records() {
            let Event::Failed { doing, error } = &record.event else { continue };
            let at = (record.at, record.at);
            if history.interruptions(Some(&record.by), at, self.aftermath) == 0 {
                let text = format!("{doing} failed though nothing was wrong: {error}");
                findings.add(Wrong::Failed, &record.by, text);
            }
        }
    }

    /// Whether something went wrong for a publish until this answer.
    pub(super) fn is_disturbed(
        &self,
        history: &History,
        message: &Message,
        answered: Duration,
    ) -> bool {
        let time = (message.sent, answered);
        history.interruptions(Some(&message.by), time, self.aftermath) > 0
    }
}
