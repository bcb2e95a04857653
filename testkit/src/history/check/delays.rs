use std::time::Duration;

use super::{Checker, Findings, Wrong};
use crate::history::{History, RunEnd};

impl Checker {
    /// Whether every wait was waited for.
    pub(super) fn delays(&self, history: &History, findings: &mut Findings) {
        for (id, message, group) in self.expected(history) {
            let runs = history.runs_of(id, &group.name);
            let due = message.sent + message.delay;
            if let Some(run) = runs.first().filter(|run| run.start + self.tolerance < due) {
                let text = format!(
                    "{} handled it {:?} after it was sent, not {:?}",
                    group.name,
                    run.start.saturating_sub(message.sent),
                    message.delay
                );
                findings.add(Wrong::Early, id, text);
            }
            for pair in runs.windows(2) {
                let [failed, next] = pair else { continue };
                let Some((at, RunEnd::Retry(wait) | RunEnd::Release(wait))) = failed.end else {
                    continue;
                };
                let wait = Duration::from_millis(wait);
                let is_early = next.start >= at && next.start + self.tolerance < at + wait;
                // A settlement that was interrupted brings the message back at once, and so does a
                // second copy of it.
                let time = (message.sent, next.start);
                if is_early && history.interruptions(None, time, self.aftermath) == 0 {
                    let text = format!(
                        "{}: run {} of {} starts {:?} after the failure, not {wait:?}",
                        group.name,
                        next.number,
                        next.by,
                        next.start.saturating_sub(at)
                    );
                    findings.add(Wrong::Early, id, text);
                }
            }
        }
    }
}
