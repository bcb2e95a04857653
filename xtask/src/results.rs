use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;

/// One line of the file that `ANYBROKER_TEST_RESULTS` names: what became of a conformance case on
/// one broker.
#[derive(Debug, Deserialize)]
struct Case {
    suite: String,
    #[serde(rename = "case")]
    name: String,
    outcome: Outcome,
    /// Why it is ignored.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    Ignored,
}

/// The table of cases and brokers, with the reasons below it, for a file's content.
pub(crate) fn table(content: &str) -> Result<String, serde_json::Error> {
    let cases: Vec<Case> = content.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let suites: BTreeSet<_> = cases.iter().map(|case| case.suite.as_str()).collect();
    let mut rows: BTreeMap<_, BTreeMap<_, Outcome>> = BTreeMap::new();
    let mut reasons = BTreeSet::new();
    for case in &cases {
        let cell = rows
            .entry(case.name.as_str())
            .or_default()
            .entry(case.suite.as_str())
            .or_insert(case.outcome);
        // A case that runs in several ways counts as its worst.
        if case.outcome == Outcome::Failed {
            *cell = Outcome::Failed;
        }
        if case.outcome == Outcome::Ignored {
            let reason = case.reason.as_deref().unwrap_or("no reason given");
            reasons.insert(format!("ignored on {}: {}: {reason}", case.suite, case.name));
        }
    }
    let width = rows.keys().map(|case| case.len()).max().unwrap_or_default();
    let mut table = format!("{:width$}", "");
    for suite in &suites {
        let _ = write!(table, "  {suite:>8}");
    }
    table.push('\n');
    for (case, cells) in &rows {
        let _ = write!(table, "{case:width$}");
        for suite in &suites {
            let cell = match cells.get(suite) {
                Some(Outcome::Passed) => "passed",
                Some(Outcome::Failed) => "FAILED",
                Some(Outcome::Ignored) => "ignored",
                None => "NOT RUN",
            };
            let column = suite.len().max(8);
            let _ = write!(table, "  {cell:>column$}");
        }
        table.push('\n');
    }
    for reason in reasons {
        table.push_str(&reason);
        table.push('\n');
    }
    Ok(table)
}

/// Passed and failed of one `test result:` line of a test program.
pub(crate) fn counts(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.split_once("test result: ")?;
    let number = |what| {
        let before = counts.split_once(what)?.0;
        before.rsplit([' ', ';']).find(|word| !word.is_empty())?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::{counts, table};

    #[test]
    fn table_shows_each_case_on_each_broker() {
        let content = r#"{"suite":"memory","case":"a","outcome":"passed"}
{"suite":"memory","case":"long","outcome":"ignored","reason":"it counts"}
{"suite":"rabbitmq-4.3","case":"a","outcome":"passed"}
{"suite":"rabbitmq-4.3","case":"a","outcome":"failed","reason":"boom"}
"#;
        let expected = "        memory  rabbitmq-4.3
a       passed        FAILED
long   ignored       NOT RUN
ignored on memory: long: it counts
";
        assert_eq!(table(content).unwrap(), expected);
    }

    #[test]
    fn counts_are_read_from_result_lines_only() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("running 3 tests"), None);
    }
}
