//! The conformance suite on Redis 7.0, Redis 8 and Valkey 9.

use std::process::ExitCode;
use std::sync::Arc;

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::conformance::{self, Target};

fn main() -> ExitCode {
    conformance::main([
        target("redis-7.0", "ANYBROKER_REDIS_70_URL"),
        target("redis-8", "ANYBROKER_REDIS_8_URL"),
        target("valkey-9", "ANYBROKER_VALKEY_9_URL"),
    ])
}

fn target(name: &'static str, variable: &'static str) -> Target {
    Target::new(name, move || connect(variable, ""))
        .verifying(move || connect(variable, "?declare=verify"))
}

async fn connect(variable: &str, options: &str) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(variable).map_err(|_| {
        format!("{variable} is not set: run `cargo xtask test`, which finds or starts the server")
    })?;
    open(&format!("{url}{options}")).await
}

async fn open(url: &str) -> Result<Arc<dyn Broker>, BoxError> {
    Ok(anybroker_redis::connect(url.parse()?).await?)
}
