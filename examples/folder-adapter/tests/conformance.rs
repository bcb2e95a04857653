//! The conformance suite on a folder.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::conformance::{self, Target};

/// The same in each process that a case starts, and in several runs at once.
const ROOT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/conformance");

fn main() -> ExitCode {
    remove_earlier_runs();
    let folder = Target::new("folder", || connect(""));
    conformance::main([folder.verifying(|| connect("?declare=verify"))])
}

async fn connect(options: &str) -> Result<Arc<dyn Broker>, BoxError> {
    let url = format!("folder://{ROOT}{options}").parse()?;
    Ok(anybroker_folder_example::connect(url).await?)
}

fn remove_earlier_runs() {
    for entry in std::fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|data| data.modified());
        if changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_hours(1))) {
            // Another run may be removing it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
