use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anybroker_testkit::brokers::docker_answers;

/// The adapters that the program can be built with.
const ADAPTERS: [&str; 4] = ["redis", "rabbitmq", "kafka", "sqs"];

/// Breaks what can break. `arguments` go to the program as they are; it is built with the adapter
/// that they name, and becomes this process, so that a Ctrl-C reaches it alone.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let is_named = |adapter: &&str| arguments.iter().any(|one| one == adapter || one == "all");
    let mut features: Vec<_> = ADAPTERS.iter().filter(|adapter| is_named(adapter)).collect();
    if docker_answers() {
        features.push(&"containers");
    }
    let features: Vec<_> = features.into_iter().copied().collect();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "anybroker-chaos", "--features"]);
    Err(cargo.arg(features.join(",")).arg("--").args(arguments).exec().into())
}
