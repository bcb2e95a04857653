//! Measures anybroker against the bare client of each broker, in the same run, as ratios.

mod kafka;
mod measure;
mod memory;
mod ours;
mod rabbitmq;
mod redis;
mod sqs;

use std::process::ExitCode;

use anybroker::BoxError;
use anybroker_testkit::brokers::{
    ElasticMq, Kafka, RabbitMq, RabbitMqVersion, Redis, RedisVersion,
};
use clap::{Parser, ValueEnum};

use crate::measure::Table;

/// For both sides the same: with the system's, half a million messages that one thread makes and
/// another frees leave a heap whose state decides the next figure.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures anybroker against the bare client of each broker, in the same run.
///
/// Servers are those that the environment names (`ANYBROKER_RABBITMQ_310_URL`,
/// `ANYBROKER_RABBITMQ_43_URL`, `ANYBROKER_KAFKA_URL`, `ANYBROKER_REDIS_70_URL`,
/// `ANYBROKER_REDIS_8_URL`, `ANYBROKER_ELASTICMQ_URL`), else its own.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure
    #[arg(default_values = ["memory", "rabbitmq", "kafka", "redis", "sqs"])]
    brokers: Vec<Bench>,
    /// Fewer messages and rounds: a first impression, in about a minute for each broker
    #[arg(long)]
    quick: bool,
    /// Fail unless every ratio and rate reaches its stated goal
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    Memory,
    Rabbitmq,
    Kafka,
    Redis,
    Sqs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut table = Table::default();
    for bench in &arguments.brokers {
        let done = match bench {
            Bench::Memory => memory::run(&mut table, arguments.quick).await,
            Bench::Rabbitmq => measure_rabbitmq(&mut table, &arguments).await,
            Bench::Kafka => measure_kafka(&mut table, &arguments).await,
            Bench::Redis => measure_redis(&mut table, &arguments).await,
            Bench::Sqs => measure_sqs(&mut table, arguments.quick).await,
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
    for version in [RabbitMqVersion::V3_10, RabbitMqVersion::V4_3] {
        // Starting a server waits on processes.
        let server = tokio::task::spawn_blocking(move || RabbitMq::new(version).find()).await??;
        rabbitmq::run(table, server.url(), server.version(), arguments.quick).await?;
    }
    Ok(())
}

async fn measure_kafka(table: &mut Table, arguments: &Arguments) -> Result<(), BoxError> {
    let server = tokio::task::spawn_blocking(|| Kafka::new().find()).await??;
    kafka::run(table, server.url(), arguments.quick).await
}

async fn measure_redis(table: &mut Table, arguments: &Arguments) -> Result<(), BoxError> {
    for version in [RedisVersion::V7_0, RedisVersion::V8] {
        let server = tokio::task::spawn_blocking(move || Redis::new(version).find()).await??;
        redis::run(table, server.url(), server.version(), arguments.quick).await?;
    }
    Ok(())
}

async fn measure_sqs(table: &mut Table, quick: bool) -> Result<(), BoxError> {
    let server = tokio::task::spawn_blocking(|| ElasticMq::new().find()).await??;
    sqs::run(table, server.url(), quick).await
}
