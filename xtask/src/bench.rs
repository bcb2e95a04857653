use std::error::Error;
use std::process::{Command, ExitCode};

use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion, Server};

/// Measures against the bare clients, on the servers that the tests use too.
///
/// `arguments` go to the bench program as they are.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    // The program first: nobody wants a server to wait for a compiler.
    let cargo = |task: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([task, "--release", "--package", "anybroker-benches"]);
        cargo
    };
    if !cargo("build").status()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let is_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let only_memory = arguments.iter().any(|argument| argument == "memory");
    let mut servers = Vec::new();
    if !is_help && !only_memory {
        for version in [RabbitMqVersion::V3_10, RabbitMqVersion::V4_3] {
            servers.push(RabbitMq::new(version).find()?);
        }
    }
    let urls: Vec<_> = servers.iter().map(Server::url).collect();
    let mut run = cargo("run");
    run.args(["--quiet", "--"]).args(arguments);
    if !urls.is_empty() {
        run.env("ANYBROKER_RABBITMQ_URL", urls.join(","));
    }
    let is_done = run.status()?.success();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
