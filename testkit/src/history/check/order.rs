use std::collections::BTreeMap;
use std::time::Duration;

use super::{Checker, Findings, Violation, Wrong};
use crate::history::{Fate, History};

impl Checker {
    /// Whether the messages of each key were handled in the order of their sends.
    ///
    /// It looks at the first run of each message that acknowledged it, so that repetitions count for
    /// nothing, and passes over what has to fail.
    pub(super) fn order(&self, history: &History, findings: &mut Findings) {
        let mut keys = BTreeMap::<_, Vec<_>>::new();
        for (id, message, group) in self.expected(history) {
            let Some(key) = message.key.as_deref().filter(|_| group.is_ordered) else { continue };
            if message.is_confirmed() && message.fate == Fate::Handled {
                let key = (&*group.name, &*message.to, &*message.by, key);
                keys.entry(key).or_default().push((message.sent, id));
            }
        }
        for ((group, ..), mut messages) in keys {
            messages.sort_unstable();
            let mut latest: Option<(Duration, &str)> = None;
            for (_, id) in messages {
                let runs = history.runs_of(id, group).iter();
                let first = runs.filter(|run| run.acknowledged().is_some());
                let Some(run) = first.min_by_key(|run| run.acknowledged()) else { continue };
                if let Some((end, earlier)) = latest.filter(|(end, _)| *end > run.start) {
                    let text = format!(
                        "{group} began to handle it {:?} before {earlier}, which was sent first, was handled",
                        end.saturating_sub(run.start)
                    );
                    findings.violations.push(Violation {
                        wrong: Wrong::Reordered,
                        subject: id.to_owned(),
                        other: Some(earlier.to_owned()),
                        text,
                    });
                }
                let end = run.acknowledged().unwrap_or_default();
                if latest.is_none_or(|(latest, _)| end > latest) {
                    latest = Some((end, id));
                }
            }
        }
    }
}
