use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

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

/// What a suite's target does not offer, beside what its broker cannot do: by the suite, and the
/// beginning of the reason.
const NOT_OFFERED: [(&str, &str); 7] = [
    ("memory", "no other process can reach the broker"),
    ("memory", "the target does not say how to kill"),
    ("recorder", "no other process can reach the broker"),
    ("recorder", "the target does not say how to kill"),
    ("folder", "the target offers no connection with declare=off"),
    ("folder", "the target does not say how to kill"),
    // It keeps nothing.
    ("sqs-ministack", "the target does not say how to kill"),
];

/// The cases that are ignored since a target offers less than it did: without this, one that lost
/// its hook would only run fewer of them.
pub(crate) fn lost(content: &str) -> Result<Vec<String>, serde_json::Error> {
    let cases: Vec<Case> = content.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let lost = cases.iter().filter_map(|case| {
        let reason = case.reason.as_deref().filter(|_| case.outcome == Outcome::Ignored)?;
        let of_target = reason.starts_with("the target ") || reason.starts_with("no other process");
        let known =
            |(suite, known): &(&str, &str)| case.suite == *suite && reason.starts_with(known);
        (of_target && !NOT_OFFERED.iter().any(known))
            .then(|| format!("{}::{} is ignored: {reason}", case.suite, case.name))
    });
    Ok(lost.collect())
}

/// The table of cases and brokers for a file's content: a number stands for an ignored case, and
/// for its reason below the table.
pub(crate) fn table(content: &str) -> Result<String, serde_json::Error> {
    let cases: Vec<Case> = content.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let suites: BTreeSet<_> = cases.iter().map(|case| case.suite.as_str()).collect();
    let mut reasons = Vec::new();
    let mut rows: BTreeMap<_, BTreeMap<_, Cell>> = BTreeMap::new();
    for case in &cases {
        let cell = match case.outcome {
            Outcome::Passed => Cell::Passed,
            Outcome::Failed => Cell::Failed,
            Outcome::Ignored => {
                let reason = case.reason.as_deref().unwrap_or("no reason given");
                let known = reasons.iter().position(|known| *known == reason);
                Cell::Ignored(known.unwrap_or_else(|| {
                    reasons.push(reason);
                    reasons.len() - 1
                }))
            }
        };
        let row = rows.entry(case.name.as_str()).or_default();
        // A case that runs in several ways counts as its worst.
        row.entry(case.suite.as_str())
            .and_modify(|worst| *worst = cell.max(*worst))
            .or_insert(cell);
    }

    let width = rows.keys().map(|case| case.len()).max().unwrap_or_default();
    let mut table = format!("{:width$}", "");
    for suite in &suites {
        let _ = write!(table, "  {suite:>7}");
    }
    table.push('\n');
    let mut totals: BTreeMap<_, BTreeMap<_, u32>> = BTreeMap::new();
    for (case, cells) in &rows {
        let _ = write!(table, "{case:width$}");
        for suite in &suites {
            let cell = cells.get(suite).copied().unwrap_or(Cell::NotRun);
            let column = suite.len().max(7);
            let _ = write!(table, "  {:>column$}", cell.to_string());
            *totals.entry(*suite).or_default().entry(cell.total()).or_default() += 1;
        }
        table.push('\n');
    }
    for what in ["passed", "ignored", "FAILED", "not run"] {
        let _ = write!(table, "{what:>width$}");
        for suite in &suites {
            let total = totals.get(suite).and_then(|totals| totals.get(what)).unwrap_or(&0);
            let column = suite.len().max(7);
            let _ = write!(table, "  {total:>column$}");
        }
        table.push('\n');
    }
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(table, "({}) ignored: {reason}", number + 1);
    }
    Ok(table)
}

/// What became of a case on a broker, in the order from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    NotRun,
    Passed,
    /// With the place of its reason.
    Ignored(usize),
    Failed,
}

impl Cell {
    /// The total that it counts for.
    fn total(self) -> &'static str {
        match self {
            Self::NotRun => "not run",
            Self::Passed => "passed",
            Self::Ignored(_) => "ignored",
            Self::Failed => "FAILED",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRun => f.write_str("-"),
            Self::Passed => f.write_str("ok"),
            Self::Ignored(reason) => write!(f, "({})", reason + 1),
            Self::Failed => f.write_str("FAILED"),
        }
    }
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
    use super::{counts, lost, table};

    #[test]
    fn a_target_that_offers_less_is_seen() {
        let content = r#"{"suite":"memory","case":"a","outcome":"ignored","reason":"no other process can reach the broker"}
{"suite":"kafka","case":"a","outcome":"ignored","reason":"no other process can reach the broker"}
{"suite":"kafka","case":"b","outcome":"ignored","reason":"kafka: deliveries are not leased"}
{"suite":"kafka","case":"c","outcome":"failed","reason":"the target is wrong"}
"#;
        let expected = ["kafka::a is ignored: no other process can reach the broker"];
        assert_eq!(lost(content).unwrap(), expected);
    }

    #[test]
    fn table_shows_each_case_on_each_broker() {
        let content = r#"{"suite":"memory","case":"a","outcome":"passed"}
{"suite":"memory","case":"long name","outcome":"ignored","reason":"it counts"}
{"suite":"memory","case":"other","outcome":"ignored","reason":"it counts"}
{"suite":"rabbitmq-4.3","case":"a","outcome":"passed"}
{"suite":"rabbitmq-4.3","case":"a","outcome":"failed","reason":"boom"}
{"suite":"rabbitmq-4.3","case":"other","outcome":"ignored","reason":"it is slow"}
"#;
        let expected = "            memory  rabbitmq-4.3
a               ok        FAILED
long name      (1)             -
other          (1)           (2)
   passed        1             0
  ignored        2             1
   FAILED        0             1
  not run        0             1
(1) ignored: it counts
(2) ignored: it is slow
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
