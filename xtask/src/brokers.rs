use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anybroker_testkit::brokers::{Detached, RabbitMq, RabbitMqVersion, cache_folder};
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::containers;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Starts a broker, waits until it answers, and prints the variables to export
    ///
    /// Use it as: eval "$(cargo xtask brokers up rabbitmq)"
    Up {
        broker: Broker,
        /// 3.10 (the default) or 4.3
        #[arg(long)]
        version: Option<String>,
    },
    /// Stops the brokers that `up` started
    Down,
    /// Says which brokers run, and where
    Status,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Broker {
    Rabbitmq,
}

/// A broker that `up` started, as it is written down for `down`.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    name: String,
    version: String,
    url: String,
    variables: Vec<String>,
    server: Detached,
}

pub(crate) fn run(action: &Action) -> Result<ExitCode, Box<dyn Error>> {
    if let Action::Up { .. } = action
        && let Some(code) = containers::reenter()?
    {
        return Ok(code);
    }
    // The list is read, changed and written by one at a time.
    let lock = File::create(list()?.with_extension("lock"))?;
    lock.lock()?;
    match action {
        Action::Up { broker: Broker::Rabbitmq, version } => up_rabbitmq(version.as_deref()),
        Action::Down => down(),
        Action::Status => status(),
    }
}

fn up_rabbitmq(version: Option<&str>) -> Result<ExitCode, Box<dyn Error>> {
    let (name, version, variable) = match version {
        None | Some("3.10") => {
            ("rabbitmq-3.10", RabbitMqVersion::V3_10, "ANYBROKER_RABBITMQ_310_URL")
        }
        Some("4.3") => ("rabbitmq-4.3", RabbitMqVersion::V4_3, "ANYBROKER_RABBITMQ_43_URL"),
        Some(other) => {
            return Err(format!("no RabbitMQ {other} to start: write 3.10 or 4.3").into());
        }
    };
    let mut all = read()?;
    // One that has ended by itself leaves its folder.
    all.retain(|one| one.name != name || one.server.is_running() || one.server.stop().is_err());
    if let Some(running) = all.iter().find(|one| one.name == name && one.server.is_running()) {
        eprintln!("{name} runs already ({})", running.server.place());
        export(running);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("starting {name}");
    let server = RabbitMq::new(version).launch()?;
    let (version, url) = (server.version().to_owned(), server.url().to_owned());
    let server = server.detach().ok_or("a launched server is ours")?;
    eprintln!("RabbitMQ {version} answers ({})", server.place());
    let variables = vec!["ANYBROKER_RABBITMQ_URL".to_owned(), variable.to_owned()];
    let started = Started { name: name.to_owned(), version, url, variables, server };
    export(&started);
    all.push(started);
    write(&all)?;
    Ok(ExitCode::SUCCESS)
}

fn export(started: &Started) {
    for variable in &started.variables {
        println!("export {variable}={}", started.url);
    }
}

fn down() -> Result<ExitCode, Box<dyn Error>> {
    let mut all = read()?;
    if all.is_empty() {
        eprintln!("nothing was started by `cargo xtask brokers up`");
    }
    // One that cannot be stopped stays on the list, and keeps none of the others running.
    let mut code = ExitCode::SUCCESS;
    all.retain(|one| match one.server.stop() {
        Ok(()) => {
            eprintln!("stopped {} ({})", one.name, one.server.place());
            false
        }
        Err(error) => {
            eprintln!("error: {}: {error}", one.name);
            code = ExitCode::FAILURE;
            true
        }
    });
    write(&all)?;
    Ok(code)
}

fn status() -> Result<ExitCode, Box<dyn Error>> {
    let all = read()?;
    if all.is_empty() {
        println!("no broker was started by `cargo xtask brokers up`");
    }
    for one in all {
        let state = if one.server.is_running() { "runs" } else { "has ended" };
        println!("{} {} {state}: {} ({})", one.name, one.version, one.url, one.server.place());
    }
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<PathBuf, Box<dyn Error>> {
    Ok(cache_folder()?.join("brokers.json"))
}

fn read() -> Result<Vec<Started>, Box<dyn Error>> {
    match fs::read(list()?) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn write(all: &[Started]) -> Result<(), Box<dyn Error>> {
    Ok(fs::write(list()?, serde_json::to_vec_pretty(all)?)?)
}
