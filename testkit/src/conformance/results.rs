use std::fs::OpenOptions;
use std::io::Write;

/// How a case ended.
pub(super) enum Outcome {
    Passed,
    Failed(String),
    Ignored(String),
}

/// Names the file that results are appended to.
const FILE: &str = "ANYBROKER_TEST_RESULTS";

/// Appends a line of JSON to the results, if anybody asked for them.
pub(super) fn append(suite: &str, case: &str, outcome: &Outcome) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let (outcome, reason) = match outcome {
        Outcome::Passed => ("passed", ""),
        Outcome::Failed(reason) => ("failed", &**reason),
        Outcome::Ignored(reason) => ("ignored", &**reason),
    };
    let line = serde_json::json!({
        "suite": suite, "case": case, "outcome": outcome, "reason": reason,
    });
    // One write each: lines of cases that end together do not mix.
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    assert!(written.is_ok(), "cannot write {FILE}={}: {written:?}", path.display());
}
