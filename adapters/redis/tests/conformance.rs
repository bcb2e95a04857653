//! The conformance suite on Redis 7.0, Redis 8 and Valkey 9.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anybroker_core::{BoxError, Broker};
use anybroker_testkit::brokers::{Redis, RedisVersion, Server};
use anybroker_testkit::conformance::{self, Target};
use tokio::task::spawn_blocking;

fn main() -> ExitCode {
    conformance::main([
        target("redis-7.0", RedisVersion::V7_0, "ANYBROKER_REDIS_70_URL"),
        target("redis-8", RedisVersion::V8, "ANYBROKER_REDIS_8_URL"),
        target("valkey-9", RedisVersion::Valkey9, "ANYBROKER_VALKEY_9_URL"),
    ])
}

fn target(name: &'static str, version: RedisVersion, variable: &'static str) -> Target {
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
    Ok(anybroker_redis::connect(url.parse()?).await?)
}

fn url_of(server: &Mutex<Option<Server>>, version: RedisVersion) -> Result<String, BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    if server.is_none() {
        *server = Some(Redis::new(version).launch()?);
    }
    Ok(server.as_ref().ok_or("it was just started")?.url().to_owned())
}

fn restart(server: &Mutex<Option<Server>>) -> Result<(), BoxError> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(server.as_mut().ok_or("it was never started")?.restart()?)
}
