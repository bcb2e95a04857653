//! Measures anybroker against the bare client of each broker, in the same run, as ratios.

mod measure;
mod memory;
mod rabbitmq;

use std::process::ExitCode;

use anybroker::BoxError;
use clap::{Parser, ValueEnum};

use crate::measure::Table;

/// Measures anybroker against the bare client of each broker, in the same run.
///
/// Run it by `cargo xtask bench`, which finds or starts the servers; or by itself against servers
/// that the environment names.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure
    #[arg(default_values = ["memory", "rabbitmq"])]
    brokers: Vec<Bench>,
    /// Fewer messages and rounds: a first impression in about a minute
    #[arg(long)]
    quick: bool,
    /// Fail unless every ratio and rate reaches its stated goal
    #[arg(long)]
    check: bool,
    /// The RabbitMQ servers to measure on, separated by commas
    #[arg(long, env = "ANYBROKER_RABBITMQ_URL", hide_env_values = true, value_delimiter = ',')]
    rabbitmq_url: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    Memory,
    Rabbitmq,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut table = Table::default();
    for bench in &arguments.brokers {
        let done = match bench {
            Bench::Memory => memory::run(&mut table, arguments.quick).await,
            Bench::Rabbitmq => measure_rabbitmq(&mut table, &arguments).await,
        };
        if let Err(error) = done {
            eprintln!("error: {bench:?}: {error}");
            return ExitCode::FAILURE;
        }
    }
    println!("{table}");
    if arguments.check && !table.reaches_goals() {
        eprintln!("error: a goal was missed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn measure_rabbitmq(table: &mut Table, arguments: &Arguments) -> Result<(), BoxError> {
    if arguments.rabbitmq_url.is_empty() {
        let text =
            "no server: set ANYBROKER_RABBITMQ_URL (`cargo xtask brokers up rabbitmq` starts one)";
        return Err(text.into());
    }
    for url in &arguments.rabbitmq_url {
        rabbitmq::run(table, url, arguments.quick).await?;
    }
    Ok(())
}
