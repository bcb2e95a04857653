use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::adapter::pause;
use anybroker_core::{ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError, Script, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::error::{closed, error_of, failed, is_answer, is_replica, unanswered};
use crate::scripts::text;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take, other than to a read that blocks. The server works on one command
/// after the other, so that this is how long all others may hold it up.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Pipelines of all tasks that wait to be written; the client's 50 would hold up more than that.
const BUFFER: usize = 1024;

/// A connection that comes back: whoever finds it broken says so, and the next to need it makes a
/// new one.
pub(crate) struct Link {
    clients: Arc<[Client]>,
    state: Mutex<State>,
    closed: AtomicBool,
}

/// A connection that was idle for so long is tried before it is used: what is sent on a dead one
/// may or may not have arrived.
const IDLE: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    used: Option<Instant>,
    epoch: u64,
    failures: u32,
}

impl Link {
    pub(crate) fn new(clients: Arc<[Client]>) -> Self {
        Self { clients, state: Mutex::default(), closed: AtomicBool::new(false) }
    }

    /// The connection and its number, made anew where there is none.
    ///
    /// # Errors
    /// Those of one attempt to connect.
    pub(crate) async fn get(&self) -> Result<(u64, MultiplexedConnection)> {
        let mut state = self.state.lock().await;
        if self.closed.load(Ordering::Relaxed) {
            return Err(closed("connect"));
        }
        if let Some(connection) = &state.connection {
            let mut connection = connection.clone();
            if state.used.is_none_or(|used| used.elapsed() < IDLE) || answers(&mut connection).await
            {
                state.used = Some(Instant::now());
                return Ok((state.epoch, connection));
            }
            state.connection = None;
        }
        // One at a time tries, after a pause that grows with the failures in a row.
        pause(state.failures).await;
        state.failures += 1;
        let connection = connect(&self.clients).await?;
        if self.closed.load(Ordering::Relaxed) {
            return Err(closed("connect"));
        }
        (state.failures, state.epoch) = (0, state.epoch + 1);
        (state.connection, state.used) = (Some(connection.clone()), Some(Instant::now()));
        Ok((state.epoch, connection))
    }

    /// Says that the connection of this number is of no more use.
    pub(crate) async fn broken(&self, epoch: u64) {
        let mut state = self.state.lock().await;
        if state.epoch == epoch {
            state.connection = None;
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Whoever holds the lock is connecting, and will find it closed.
        if let Ok(mut state) = self.state.try_lock() {
            state.connection = None;
        }
    }

    /// Runs a command once.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T> {
        let (epoch, mut connection) = self.get().await?;
        let answer = timeout(ANSWER_TIMEOUT, command.query_async(&mut connection)).await;
        self.answered(operation, epoch, answer.ok()).await
    }

    /// Runs a script once.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        call: &Call<'_>,
    ) -> Result<T> {
        let (epoch, mut connection) = self.get().await?;
        let answer = timeout(ANSWER_TIMEOUT, call.0.invoke_async(&mut connection)).await;
        self.answered(operation, epoch, answer.ok()).await
    }

    async fn answered<T>(
        &self,
        operation: &'static str,
        epoch: u64,
        answer: Option<Result<T, RedisError>>,
    ) -> Result<T> {
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                if !is_answer(&error) || is_replica(&error) {
                    self.broken(epoch).await;
                }
                Err(unanswered(operation, "the server", error))
            }
            None => {
                self.broken(epoch).await;
                let text = "the server did not answer in time";
                Err(error_of(ErrorKind::Timeout, operation, text))
            }
        }
    }
}

/// A script with what it is called with.
pub(crate) struct Call<'a>(pub(crate) redis::ScriptInvocation<'a>);

impl<'a> Call<'a> {
    pub(crate) fn new(script: &'a Script) -> Self {
        Self(script.prepare_invoke())
    }

    pub(crate) fn key(mut self, key: &str) -> Self {
        self.0.key(key);
        self
    }

    pub(crate) fn arg(mut self, arg: impl redis::ToRedisArgs) -> Self {
        self.0.arg(arg);
        self
    }
}

async fn answers(connection: &mut MultiplexedConnection) -> bool {
    let ping = redis::cmd("PING");
    let answer = timeout(TRY_TIMEOUT, ping.query_async::<()>(connection)).await;
    matches!(answer, Ok(Ok(())))
}

/// Whether it says so; a server that does not tell is taken for none.
async fn is_a_replica(connection: &mut MultiplexedConnection) -> bool {
    let hello = redis::cmd("HELLO").query_async::<HashMap<String, Value>>(connection).await;
    let role = hello.ok().and_then(|mut hello| hello.remove("role")).and_then(text);
    role.is_some_and(|role| role == "replica" || role == "slave")
}

/// Connects to the first host that answers and is no replica.
pub(crate) async fn connect(clients: &[Client]) -> Result<MultiplexedConnection> {
    // Deadlines are the callers': a read that blocks has none, and one that timed out would leave
    // its entries pending unseen.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(BUFFER);
    let mut last = None;
    for client in clients {
        let opened = async {
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&config).await?;
            // A server that still loads its data accepts connections already.
            redis::cmd("PING").query_async::<()>(&mut connection).await?;
            let replica = is_a_replica(&mut connection).await;
            Ok((connection, replica))
        };
        let address = || format!("cannot connect to {}", client.get_connection_info().addr());
        match timeout(CONNECT_TIMEOUT, opened).await {
            Ok(Ok((connection, false))) => return Ok(connection),
            Ok(Ok((_, true))) => {
                let text = format!("{}: it is a replica", address());
                last = Some(error_of(ErrorKind::Unavailable, "connect", text));
            }
            Ok(Err(error)) => last = Some(failed("connect", &address(), error)),
            Err(_) => {
                let text = format!("{} within {CONNECT_TIMEOUT:?}", address());
                last = Some(error_of(ErrorKind::Unavailable, "connect", text));
            }
        }
    }
    Err(last.unwrap_or_else(|| error_of(ErrorKind::Config, "connect", "the URL names no host")))
}
