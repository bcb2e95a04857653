//! The conformance suite on Apache Kafka: on the server that the environment names.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::brokers::{Kafka, Server};
use anybroker_testkit::conformance::{self, Target};
use tokio::task::spawn_blocking;

const VARIABLE: &str = "ANYBROKER_KAFKA_URL";

/// As short as brokers allow: a killed process is a member of its group for so long.
const SESSION: &str = "?session-timeout=6s";

fn main() -> ExitCode {
    // Nobody else uses the server that is killed. It is started when first asked for.
    let server = Arc::new(Mutex::new(None));
    let again = server.clone();
    conformance::main([Target::new("kafka", || connect(SESSION.to_owned()))
        .verifying(|| connect(format!("{SESSION}&declare=verify")))
        .assuming(|| connect(format!("{SESSION}&declare=off")))
        .killed(
            move || {
                let server = server.clone();
                async move {
                    let url = spawn_blocking(move || url_of(&server)).await??;
                    open(&format!("{url}{SESSION}")).await
                }
            },
            move || {
                let server = again.clone();
                async move { spawn_blocking(move || restart(&server)).await? }
            },
        )])
}

async fn connect(options: String) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(VARIABLE).map_err(|_| {
        format!("{VARIABLE} is not set: run `cargo xtask test`, which finds or starts the server")
    })?;
    open(&format!("{url}{options}")).await
}

async fn open(url: &str) -> Result<Arc<dyn Broker>, BoxError> {
    Ok(anybroker_kafka::connect(url.parse()?).await?)
}

fn url_of(server: &Mutex<Option<Server>>) -> Result<String, BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    if server.is_none() {
        *server = Some(Kafka::new().launch()?);
    }
    Ok(server.as_ref().ok_or("it was just started")?.url().to_owned())
}

fn restart(server: &Mutex<Option<Server>>) -> Result<(), BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(server.as_mut().ok_or("it was never started")?.restart()?)
}
