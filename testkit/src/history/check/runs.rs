use super::{Checker, Findings, Wrong};
use crate::history::History;
use crate::history::RunEnd;
use crate::history::index::{Answer, Message, Run};

impl Checker {
    /// How often each message was handled, with which attempts, and whether at the same time.
    pub(super) fn runs(&self, history: &History, findings: &mut Findings) {
        for ((id, group), runs) in &history.runs {
            findings.counts.runs += runs.len();
            let Some(message) = history.messages.get(id) else {
                findings.add(Wrong::Unknown, id, format!("{group} handled it, and nobody sent it"));
                continue;
            };
            if self.is_forgotten(history, message) {
                continue;
            }
            for (index, run) in runs.iter().enumerate() {
                let before = &runs[..index];
                self.judge_repetition(history, findings, (id, group, message), before, run);
                self.judge_attempt(history, findings, (id, group, message), before, run);
            }
        }
        for (id, message) in &history.messages {
            let twice = |name: &str| {
                let runs = history.runs_of(id, name);
                runs.iter().filter(|run| run.attempt == 1 && run.acknowledged().is_some()).count()
                    > 1
            };
            let mut groups = self.groups.iter().filter(|group| group.destination == message.to);
            let all_twice = groups.clone().count() > 0 && groups.all(|group| twice(&group.name));
            let is_stored_twice = all_twice && self.was_publish_disturbed(history, message);
            findings.counts.stored_twice += usize::from(is_stored_twice);
        }
    }

    fn judge_repetition(
        &self,
        history: &History,
        findings: &mut Findings,
        (id, group, message): (&str, &str, &Message),
        before: &[Run],
        run: &Run,
    ) {
        // It is explained by what took the delivery of an earlier run away, or by what may have made
        // two copies of the message: when it was published, or before that run began.
        let explained = |earlier: &Run| {
            let time = (earlier.start, run.start);
            let copied = (message.sent, earlier.start);
            history.interruptions(Some(&earlier.by), time, self.aftermath) > 0
                || history.interruptions(None, copied, self.aftermath) > 0
                || self.was_publish_disturbed(history, message)
        };
        if let Some(other) = before.iter().find(|one| history.over(one) > run.start) {
            if explained(other) {
                findings.counts.at_once += 1;
            } else {
                let text = format!(
                    "{group}: run {} of {} starts while run {} of {} goes on",
                    run.number, run.by, other.number, other.by
                );
                findings.add(Wrong::AtOnce, id, text);
            }
        }
        let acknowledged = |one: &&Run| one.acknowledged().is_some_and(|at| at <= run.start);
        if let Some(first) = before.iter().find(acknowledged) {
            if explained(first) {
                findings.counts.again += usize::from(run.acknowledged().is_some());
            } else {
                let text = format!(
                    "{group}: run {} of {} acknowledged it, and run {} of {} handles it again",
                    first.number, first.by, run.number, run.by
                );
                findings.add(Wrong::Doubled, id, text);
            }
        }
    }

    fn judge_attempt(
        &self,
        history: &History,
        findings: &mut Findings,
        (id, group, message): (&str, &str, &Message),
        before: &[Run],
        run: &Run,
    ) {
        let attempt = run.attempt as usize;
        // A settlement that was interrupted need not have counted, and a hand-out that was
        // interrupted may have.
        let time = (message.sent, run.start);
        let interruptions = history.interruptions(None, time, self.aftermath);
        let is_ordered = self.groups.iter().any(|one| one.name == group && one.is_ordered);
        let others = if is_ordered { 0 } else { self.counting - 1 };
        let leases = self.lease.map_or(0, |lease| history.leases(time, lease));
        let counted = interruptions + leases + others * history.outages(time, self.aftermath);
        let is_failure =
            |one: &&Run| matches!(&one.end, Some((_, RunEnd::Retry(_) | RunEnd::Error(_))));
        let anew = self.by_process && is_ordered;
        let own = before.iter().rev().take_while(|one| !anew || one.by == run.by);
        let failures = own.filter(|one| is_failure(one)).count();
        let text = |found: &str| {
            format!(
                "{group}: run {} of {} is attempt {attempt} after {} runs, {failures} of them failed: {found}",
                run.number,
                run.by,
                before.len()
            )
        };
        if attempt > before.len() + 1 + counted {
            findings.add(Wrong::Attempts, id, text("too high"));
        } else if attempt > before.len() + 1 {
            findings.counts.overcounted += 1;
        } else if attempt < failures + 1 && interruptions == 0 {
            findings.add(Wrong::Attempts, id, text("too low"));
        }
    }

    fn was_publish_disturbed(&self, history: &History, message: &Message) -> bool {
        match &message.answer {
            Some((at, Answer::Confirmed | Answer::Refused { .. })) => {
                self.is_disturbed(history, message, *at)
            }
            None => true,
        }
    }
}
