use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Subcommand;

use crate::containers;
use crate::servers::{Broker, KINDS, Kind, current, of_version};
use crate::started::{List, Started};

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Starts brokers, waits until they answer, and prints the variables to export
    ///
    /// Use it as: eval "$(cargo xtask brokers up)"
    Up {
        /// All of them, unless some are named
        brokers: Vec<Broker>,
        /// Of a single broker: rabbitmq 4.3 or 3.10; redis 8, 7.0 or valkey-9; kafka 4.3 or 3.9;
        /// sqs ministack or elasticmq, which are both started unless one is named
        #[arg(long)]
        version: Option<String>,
    },
    /// Stops the brokers that `up` started, and no other
    Down {
        /// All of them, unless some are named
        brokers: Vec<Broker>,
    },
    /// Says which brokers run, where, and in which version
    Status,
}

pub(crate) fn run(action: &Action) -> Result<ExitCode, Box<dyn Error>> {
    match action {
        Action::Up { brokers, version } => up(brokers, version.as_deref()),
        Action::Down { brokers } => down(brokers),
        Action::Status => status(),
    }
}

fn up(brokers: &[Broker], version: Option<&str>) -> Result<ExitCode, Box<dyn Error>> {
    let kinds = match (brokers, version) {
        (brokers, None) => current(brokers),
        ([broker], Some(version)) => vec![of_version(*broker, version)?],
        _ => return Err("--version goes with the name of one broker".into()),
    };
    if let Some(code) = containers::reenter()? {
        return Ok(code);
    }
    let failed = thread::scope(|scope| {
        let starts: Vec<_> = kinds
            .iter()
            // An error that can leave the thread says all that the error itself does.
            .map(|kind| scope.spawn(|| start(kind).map_err(|error| error.to_string())))
            .collect();
        let mut failed = false;
        for (kind, start) in kinds.iter().zip(starts) {
            let error = match start.join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => "the start panicked".to_owned(),
            };
            eprintln!("error: {}: {error}", kind.name);
            failed = true;
        }
        failed
    });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn start(kind: &Kind) -> Result<(), Box<dyn Error>> {
    let Kind { name, variables, .. } = *kind;
    let mut list = List::open()?;
    // One that has ended by itself leaves its folder.
    list.all
        .retain(|one| one.name != name || one.server.is_running() || one.server.stop().is_err());
    if let Some(running) = list.all.iter().find(|one| one.name == name && one.server.is_running()) {
        eprintln!("{name} runs already ({})", running.server.place());
        export(variables, &running.url);
        return Ok(());
    }
    drop(list);

    eprintln!("starting {name}");
    let began = Instant::now();
    let server = (kind.find)()?;
    let (version, url) = (server.version().to_owned(), server.url().to_owned());
    let took = began.elapsed().as_secs_f64();
    let Some(server) = server.detach() else {
        eprintln!("{name} answers ({version}, named by the environment)");
        export(variables, &url);
        return Ok(());
    };
    eprintln!("{name} answers ({version}, {}, {took:.1} s)", server.place());
    export(variables, &url);
    let variables = variables.iter().map(|name| (*name).to_owned()).collect();
    let mut list = List::open()?;
    list.all.push(Started { name: name.to_owned(), version, url, variables, server });
    list.save()
}

/// In one piece: others print at the same time.
fn export(variables: &[&str], url: &str) {
    let lines: Vec<_> = variables.iter().map(|name| format!("export {name}={url}")).collect();
    println!("{}", lines.join("\n"));
}

fn down(brokers: &[Broker]) -> Result<ExitCode, Box<dyn Error>> {
    let mut list = List::open()?;
    let is_meant = |name: &str| {
        brokers.is_empty()
            || KINDS.iter().any(|kind| kind.name == name && brokers.contains(&kind.broker))
    };
    if !list.all.iter().any(|one| is_meant(&one.name)) {
        eprintln!("no such broker was started by `cargo xtask brokers up`");
    }
    // One that cannot be stopped stays on the list, and keeps none of the others running.
    let mut code = ExitCode::SUCCESS;
    list.all.retain(|one| {
        if !is_meant(&one.name) {
            return true;
        }
        match one.server.stop() {
            Ok(()) => {
                eprintln!("stopped {} ({})", one.name, one.server.place());
                false
            }
            Err(error) => {
                eprintln!("error: {}: {error}", one.name);
                code = ExitCode::FAILURE;
                true
            }
        }
    });
    list.save()?;
    Ok(code)
}

fn status() -> Result<ExitCode, Box<dyn Error>> {
    let list = List::open()?;
    if list.all.is_empty() {
        println!("no broker was started by `cargo xtask brokers up`");
    }
    for one in &list.all {
        let state = if one.server.is_running() { "runs" } else { "has ended" };
        println!("{} {} {state}: {} ({})", one.name, one.version, one.url, one.server.place());
    }
    Ok(ExitCode::SUCCESS)
}
