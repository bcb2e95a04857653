use std::fmt::Write as _;
use std::path::Path;

use anybroker_testkit::history::Violation;

use crate::director::Ended;
use crate::plan::Wish;

/// How many offenders of a kind are printed; all are in the file.
const SHOWN: usize = 3;

/// Prints what came of a run, and writes all that is wrong into `violations.txt`.
pub(crate) fn print(name: &str, wish: &Wish, ended: &Ended, folder: &Path) -> std::io::Result<()> {
    let (history, findings) = (&ended.history, &ended.findings);
    let faults = history.disturbances();
    let faults: Vec<_> = faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("faults: {}", if faults.is_empty() { "none".to_owned() } else { faults.join(" · ") });
    println!("{} · settled in {:.1} s", findings.counts, ended.settled.as_secs_f64());
    let all = |violation: &Violation| {
        let mut text = format!("{}: {}: {}\n", violation.wrong, violation.subject, violation.text);
        text.push_str(&history.about(&violation.subject));
        if let Some(other) = &violation.other {
            let _ = write!(text, "  and {other}\n{}", history.about(other));
        }
        text
    };
    let kinds = findings.kinds();
    let mut file = String::new();
    for (wrong, count) in &kinds {
        let _ = writeln!(file, "{wrong}: {count}");
        let offenders = findings.violations.iter().filter(|one| one.wrong == *wrong);
        for (index, violation) in offenders.enumerate() {
            // A history of thousands takes long, and nobody reads it.
            let text =
                if index < 100 { all(violation) } else { format!("{}\n", violation.subject) };
            if index < SHOWN {
                print!("{text}");
            }
            file.push_str(&text);
        }
    }
    if kinds.is_empty() {
        println!("{name} · {} · seed {} · violations: 0", wish.fault, wish.seed);
        return Ok(());
    }
    let path = folder.join("violations.txt");
    std::fs::write(&path, file)?;
    let kinds: Vec<_> = kinds.iter().map(|(wrong, count)| format!("{wrong} {count}")).collect();
    println!(
        "{name} · {} · seed {} · violations: {} ({}); all of them in {}",
        wish.fault,
        wish.seed,
        findings.violations.len(),
        kinds.join(", "),
        path.display()
    );
    Ok(())
}
