//! The conformance suite: queues on ElasticMQ with AWS's limits, queues and topics beside an SNS.
//!
//! Neither server keeps its messages when it is killed, so that no case kills one.

use std::process::ExitCode;
use std::sync::Arc;

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::conformance::{self, Target};

fn main() -> ExitCode {
    conformance::main([
        target("sqs-elasticmq", "ANYBROKER_SQS_URL", "sns=off"),
        target("sqs-sns", "ANYBROKER_SNS_URL", "connect=once"),
    ])
}

fn target(name: &'static str, variable: &'static str, options: &'static str) -> Target {
    // Cases close often, and a close waits for the last receive.
    Target::new(name, move || connect(variable, format!("{options}&poll=1s")))
        .verifying(move || connect(variable, format!("{options}&poll=1s&declare=verify")))
}

async fn connect(variable: &str, options: String) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(variable).map_err(|_| {
        format!("{variable} is not set: run `cargo xtask test`, which finds or starts the server")
    })?;
    Ok(anybroker_sqs::connect(format!("{url}?{options}").parse()?).await?)
}
