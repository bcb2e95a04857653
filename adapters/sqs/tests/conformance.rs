//! The conformance suite: queues on ElasticMQ, with AWS's limits and a server that is killed, and
//! queues and topics on `MiniStack`, which keeps nothing when it is killed.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::brokers::{ElasticMq, Server};
use anybroker_testkit::conformance::{self, Target};
use tokio::task::spawn_blocking;

/// Cases close often, and a close waits for the last receive.
const OPTIONS: &str = "poll=2s";
/// `ElasticMQ` knows no topics.
const QUEUES: &str = "poll=2s&sns=off";

fn main() -> ExitCode {
    conformance::main([queues(), target("sqs-ministack", "ANYBROKER_SQS_URL", OPTIONS)])
}

fn queues() -> Target {
    // Nobody else uses the server that is killed. It is started when first asked for.
    let server = Arc::new(Mutex::new(None));
    let again = server.clone();
    target("sqs-elasticmq", "ANYBROKER_ELASTICMQ_URL", QUEUES).killed(
        move || {
            let server = server.clone();
            async move {
                let url = spawn_blocking(move || url_of(&server)).await??;
                open(&url, QUEUES).await
            }
        },
        move || {
            let server = again.clone();
            async move { spawn_blocking(move || restart(&server)).await? }
        },
    )
}

fn target(name: &'static str, variable: &'static str, options: &'static str) -> Target {
    Target::new(name, move || connect(variable, options.to_owned()))
        .verifying(move || connect(variable, format!("{options}&declare=verify")))
        .assuming(move || connect(variable, format!("{options}&declare=off")))
}

async fn connect(variable: &str, options: String) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(variable).map_err(|_| {
        format!(
            "{variable} is not set: run `cargo xtask test sqs`, which finds or starts the servers"
        )
    })?;
    open(&url, &options).await
}

async fn open(url: &str, options: &str) -> Result<Arc<dyn Broker>, BoxError> {
    Ok(anybroker_sqs::connect(format!("{url}?{options}").parse()?).await?)
}

fn url_of(server: &Mutex<Option<Server>>) -> Result<String, BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    if server.is_none() {
        *server = Some(ElasticMq::new().persistent().launch()?);
    }
    Ok(server.as_ref().ok_or("it was just started")?.url().to_owned())
}

fn restart(server: &Mutex<Option<Server>>) -> Result<(), BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(server.as_mut().ok_or("it was never started")?.restart()?)
}
