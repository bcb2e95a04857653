//! The conformance suite on RabbitMQ 3.10 and 4.3.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion, Server};
use anybroker_testkit::conformance::{self, Target};
use tokio::task::spawn_blocking;

fn main() -> ExitCode {
    conformance::main([
        target("rabbitmq-3.10", RabbitMqVersion::V3_10, "ANYBROKER_RABBITMQ_310_URL"),
        target("rabbitmq-4.3", RabbitMqVersion::V4_3, "ANYBROKER_RABBITMQ_43_URL"),
    ])
}

fn target(name: &'static str, version: RabbitMqVersion, variable: &'static str) -> Target {
    // Nobody else uses the server that is killed. It is started when first asked for.
    let server = Arc::new(Mutex::new(None));
    let again = server.clone();
    Target::new(name, move || connect(variable, ""))
        .verifying(move || connect(variable, "?declare=verify"))
        .assuming(move || connect(variable, "?declare=off"))
        .killed(
            move || {
                let server = server.clone();
                async move {
                    let url = spawn_blocking(move || url_of(&server, version)).await??;
                    open(&url).await
                }
            },
            move || {
                let server = again.clone();
                async move { spawn_blocking(move || restart(&server)).await? }
            },
        )
}

async fn connect(variable: &str, options: &str) -> Result<Arc<dyn Broker>, BoxError> {
    let url = std::env::var(variable).map_err(|_| {
        format!("{variable} is not set: run `cargo xtask test`, which finds or starts the server")
    })?;
    open(&format!("{url}{options}")).await
}

async fn open(url: &str) -> Result<Arc<dyn Broker>, BoxError> {
    Ok(anybroker_rabbitmq::connect(url.parse()?).await?)
}

fn url_of(server: &Mutex<Option<Server>>, version: RabbitMqVersion) -> Result<String, BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    if server.is_none() {
        *server = Some(RabbitMq::new(version).launch()?);
    }
    Ok(server.as_ref().ok_or("it was just started")?.url().to_owned())
}

fn restart(server: &Mutex<Option<Server>>) -> Result<(), BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(server.as_mut().ok_or("it was never started")?.restart()?)
}
