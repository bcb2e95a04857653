//! The example `orders`, unchanged, in a loop over every broker: each tells the same story, and
//! loses nothing.

use std::process::{Command, ExitCode};

use anybroker::BoxError;
use libtest_mimic::{Arguments, Trial};

#[expect(dead_code, reason = "the example's own entry")]
#[path = "../examples/orders.rs"]
mod orders;

/// Tells this program, started once more, to be the example, and where.
const EXAMPLE: &str = "ANYBROKER_TEST_EXAMPLE";

/// Where the example runs: a URL, or the variable that holds it.
const BROKERS: &[&str] = &[
    "memory://",
    #[cfg(feature = "rabbitmq")]
    "ANYBROKER_RABBITMQ_310_URL",
    #[cfg(feature = "rabbitmq")]
    "ANYBROKER_RABBITMQ_43_URL",
    #[cfg(feature = "kafka")]
    "ANYBROKER_KAFKA_URL",
    #[cfg(feature = "sqs")]
    "ANYBROKER_SQS_URL",
    #[cfg(feature = "redis")]
    "ANYBROKER_REDIS_70_URL",
    #[cfg(feature = "redis")]
    "ANYBROKER_REDIS_8_URL",
    #[cfg(feature = "redis")]
    "ANYBROKER_VALKEY_9_URL",
];

const STORY: &str = "published 21 · handled 30 · retried 8 · duplicates 1 · dead-lettered 1 · \
                     redriven 1 · lost 0";

fn main() -> Result<ExitCode, BoxError> {
    if let Ok(url) = std::env::var(EXAMPLE) {
        return example(&url);
    }
    let trials = BROKERS.iter().map(|&broker| {
        let name = broker.trim_start_matches("ANYBROKER_").trim_end_matches("_URL");
        let name = format!("the_same_story::{}", name.trim_end_matches("://").to_lowercase());
        Trial::test(name, move || Ok(tells_its_story(broker)?))
    });
    Ok(libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code())
}

#[tokio::main]
async fn example(url: &str) -> Result<ExitCode, BoxError> {
    orders::run(url).await
}

fn tells_its_story(broker: &str) -> Result<(), BoxError> {
    let url = if broker.contains("://") {
        broker.to_owned()
    } else {
        std::env::var(broker).map_err(|_| format!("{broker} is not set: run `cargo xtask test`"))?
    };
    let example = Command::new(std::env::current_exe()?).env(EXAMPLE, url).output()?;
    let said = String::from_utf8_lossy(&example.stdout);
    let errors = String::from_utf8_lossy(&example.stderr);
    assert_eq!(said.lines().last(), Some(STORY), "{said}{errors}");
    assert!(example.status.success(), "{said}{errors}");
    Ok(())
}
