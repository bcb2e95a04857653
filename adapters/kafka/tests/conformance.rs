//! The conformance suite on Apache Kafka.

use std::process::ExitCode;
use std::sync::Arc;

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::conformance::{self, Target};

const VARIABLE: &str = "ANYBROKER_KAFKA_URL";

fn main() -> ExitCode {
    conformance::main([Target::new("kafka", || connect("?session-timeout=6s"))
        .verifying(|| connect("?session-timeout=6s&declare=verify"))])
}

async fn connect(options: &str) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(VARIABLE).map_err(|_| {
        format!("{VARIABLE} is not set: run `cargo xtask test`, which finds or starts the server")
    })?;
    open(&format!("{url}{options}")).await
}

async fn open(url: &str) -> Result<Arc<dyn Broker>, BoxError> {
    Ok(anybroker_kafka::connect(url.parse()?).await?)
}
