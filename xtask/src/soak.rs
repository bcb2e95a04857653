use std::error::Error;
use std::process::{Command, ExitCode};

use crate::servers::{Broker, of_version};

/// Stops a consumer of Redis for this long, and checks that it takes nothing from the others.
pub(crate) fn run(minutes: u64) -> Result<ExitCode, Box<dyn Error>> {
    let server = (of_version(Broker::Redis, "8")?.find)()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--package", "anybroker-redis", "--example", "soak", "--"]);
    cargo.arg(minutes.to_string()).env("ANYBROKER_REDIS_URL", server.url());
    let is_done = cargo.status()?.success();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
