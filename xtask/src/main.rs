//! Tasks of the workspace: tests, brokers, benchmarks, chaos.

mod bench;
mod brokers;
mod chaos;
mod containers;
mod results;
mod servers;
mod started;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::servers::Broker;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Tasks of the workspace", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Finds or starts every broker, runs all tests, and stops what it started
    Test {
        /// Only core and the adapters of these, unless none is named
        brokers: Vec<Broker>,
    },
    /// Measures against the bare clients, and prints ratios
    #[command(disable_help_flag = true)]
    Bench {
        /// What the bench program takes: `--quick`, `--check`, `memory`, `rabbitmq`, `--help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Breaks what can break while messages flow, and finds what was lost
    #[command(disable_help_flag = true)]
    Chaos {
        /// What the chaos program takes: `redis`, `kafka --fault cut --seed 7`, `--help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Starts and stops brokers to work with
    Brokers {
        #[command(subcommand)]
        action: brokers::Action,
    },
}

fn main() -> ExitCode {
    let Arguments { task } = Arguments::parse();
    let done = match task {
        Task::Test { brokers } => test::run(&brokers),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Chaos { arguments } => chaos::run(&arguments),
        Task::Brokers { action } => brokers::run(&action),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
