use std::error::Error;
use std::process::{Command, ExitCode};

/// Measures against the bare clients. `arguments` go to the bench program as they are.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--release", "--package", "anybroker-benches", "--"]).args(arguments);
    // The first touch of a huge page can take milliseconds, which a run of a second would count.
    cargo.env("MIMALLOC_ALLOW_THP", "0");
    let is_done = cargo.status()?.success();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
