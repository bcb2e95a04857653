use std::env;
use std::error::Error;
use std::process::{Command, ExitCode};

use anybroker_testkit::brokers::docker_answers;

/// Runs this same command again with the feature `containers`, where a Docker engine would make use
/// of it. Everybody else is spared the building of a Docker client.
pub(crate) fn reenter() -> Result<Option<ExitCode>, Box<dyn Error>> {
    if cfg!(feature = "containers") || !docker_answers() {
        return Ok(None);
    }
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--features", "containers", "--"])
        .args(env::args_os().skip(1))
        .status()?;
    Ok(Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}
