//! `cargo xtask chaos`: breaks what can break while messages flow, and finds what was lost.
//!
//! It starts a broker of its own, publishers and consumers as processes that write ledgers, does
//! faults to all of them by a plan that a seed decides, heals everything, waits until all is
//! handled, and has the history judged by `anybroker_testkit::history`.

mod child;
mod clock;
mod director;
mod fault;
mod plan;
mod pressure;
mod report;
mod scenario;
mod server;
mod side_by_side;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anybroker::BoxError;
use clap::{CommandFactory, Parser, error::ErrorKind};
use tokio::sync::watch;

use crate::director::Run;
use crate::fault::{Fault, Place};
use crate::plan::Wish;
use crate::pressure::Pressure;
use crate::scenario::Part;
use crate::server::Broker;

/// Breaks what can break while messages flow, and finds what was lost
///
/// A broker is started, and with it publishers and consumers as processes of their own. Messages go
/// to a queue, to an ordered queue and to a topic with two groups; some are delayed, some fail once
/// or twice, wait in their process or in the broker, some fail for good. Then the faults come, each
/// is healed, and in the end everything that was confirmed has to be handled, within the quiet time,
/// in order, never early, and only what has to fail may be a dead letter.
///
/// The exit code is 0 when nothing is wrong, 1 when something is, 2 when it could not run. What is
/// wrong is printed with the history of each offender; all ledgers stay in target/chaos. Ctrl-C ends
/// the faults, heals, and checks all the same; a second one ends at once.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", after_long_help = EXAMPLES)]
struct Arguments {
    broker: Broker,
    /// Of the broker: 8, 7.0, valkey-9; 4.3, 3.10; 4.3, 3.9; elasticmq, ministack [default: the first]
    #[arg(long)]
    version: Option<String>,
    /// How long faults come
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value = "mix")]
    fault: Fault,
    /// Replays a run; drawn and printed unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Consumers, each a process with a connection of its own
    #[arg(long, default_value_t = 3)]
    processes: usize,
    /// Publishers, each a process
    #[arg(long, default_value_t = 2)]
    publishers: usize,
    /// Messages that each publisher sends in a second [default: 40; sqs: 15]
    #[arg(long)]
    rate: Option<u32>,
    /// Only this part of the scenario; can be given twice
    #[arg(long)]
    only: Vec<Part>,
    /// Only the ordered queue
    #[arg(long)]
    ordered: bool,
    /// How many seconds each fault lasts, instead of a time by chance
    #[arg(long)]
    hold: Option<u64>,
    /// How many seconds everything may take to be handled in the end
    #[arg(long, default_value_t = 60)]
    quiet: u64,
    /// Keeps the ledgers also when nothing is wrong
    #[arg(long)]
    keep: bool,
}

const EXAMPLES: &str = "Examples:
  cargo xtask chaos redis                                       a minute of everything
  cargo xtask chaos rabbitmq --version 3.10 --fault kill-broker --ordered
  cargo xtask chaos kafka --seconds 900 --processes 5 --seed 7  the same again as with seed 7
  cargo xtask chaos redis --fault stop-consumer --hold 600 --seconds 700
  cargo xtask chaos all --seconds 20                            what CI runs";

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(child::ROLE) {
        return child::perform(&role);
    }
    let arguments = Arguments::parse();
    let done = if arguments.broker == Broker::All {
        side_by_side::run()
    } else {
        tokio::runtime::Runtime::new()
            .map_err(BoxError::from)
            .and_then(|runtime| runtime.block_on(run(&arguments)))
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

async fn run(arguments: &Arguments) -> Result<ExitCode, BoxError> {
    let Arguments { broker, fault, .. } = *arguments;
    let version = version(arguments);
    let parts = parts(arguments, Broker::parts(version));
    let impossible = broker.impossible(version, &parts);
    if let Some((_, why)) = impossible.iter().find(|(one, _)| *one == fault) {
        return Err(format!("{fault} is not possible here: {why}").into());
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let wish = Wish {
        fault,
        seed,
        time: Duration::from_secs(arguments.seconds),
        hold: arguments.hold.map(Duration::from_secs),
        impossible: impossible.into_iter().map(|(fault, _)| fault).collect(),
    };
    let plans = [Place::Broker, Place::Processes].map(|place| wish.plan(place));
    let steps = plans.iter().map(Vec::len).sum::<usize>();
    let folder = folder(broker, version, fault, seed)?;
    let stop = stop_by_ctrl_c();

    let site = broker.launch(version).await?;
    let name = site.name.clone();
    println!("{name} · {fault} · seed {seed} · {steps} faults in {} s", arguments.seconds);
    let run = Run {
        site,
        wish: wish.clone(),
        parts,
        consumers: arguments.processes.max(1),
        publishers: arguments.publishers.max(1),
        per_second: arguments.rate.unwrap_or_else(|| broker.rate()),
        quiet: Duration::from_secs(arguments.quiet),
        folder: folder.clone(),
    };
    let pressure = Pressure::start();
    let ended = run.perform(plans, stop).await?;
    if let Some(told) = pressure.told() {
        println!("{told}");
    }
    report::print(&name, &wish, &ended, &folder)?;
    let is_sound = ended.findings.violations.is_empty();
    if is_sound && !arguments.keep {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn version(arguments: &Arguments) -> &'static str {
    let known = arguments.broker.versions();
    let wanted = arguments.version.as_deref();
    let found = wanted.map_or(known.first(), |wanted| known.iter().find(|one| **one == wanted));
    found.unwrap_or_else(|| refuse(&format!("--version is one of {}", known.join(", "))))
}

fn parts(arguments: &Arguments, offered: Vec<Part>) -> Vec<Part> {
    let mut wanted = arguments.only.clone();
    if arguments.ordered {
        wanted.push(Part::Ordered);
    }
    let chosen: Vec<_> =
        offered.into_iter().filter(|part| wanted.is_empty() || wanted.contains(part)).collect();
    if chosen.is_empty() {
        refuse("this broker has no topics: ask for another part");
    }
    chosen
}

fn refuse(text: &str) -> ! {
    Arguments::command().error(ErrorKind::ValueValidation, text).exit()
}

/// An empty folder for the ledgers.
fn folder(broker: Broker, version: &str, fault: Fault, seed: u64) -> Result<PathBuf, BoxError> {
    let name = format!("{broker:?}-{version}-{fault}-{seed}").to_lowercase();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/chaos").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Turns true with the first Ctrl-C. The second ends the program; what it started ends with it.
fn stop_by_ctrl_c() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let mut count = 0;
        while tokio::signal::ctrl_c().await.is_ok() {
            count += 1;
            if count == 2 {
                std::process::exit(130);
            }
            eprintln!(
                "\nthe faults end; all is healed and checked (Ctrl-C once more ends at once)"
            );
            stop.send_replace(true);
        }
        // Without a signal to wait for, the channel stays open for as long as the faults last.
        stop.closed().await;
    });
    stopped
}
