use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anybroker_core::adapter::{Background, Outage, ServerClock, SharedTask, pause};
use anybroker_core::{Error, ErrorKind, Result, now};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, RedisError, Script, Value,
};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{closed, error_of, failed, is_answer, is_of_tls, is_replica, unanswered};
use crate::options::over_tls;
use crate::scripts::text;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to find out why it failed.
const WHY: Duration = Duration::from_millis(1500);
/// How long an answer may take, other than to a read that blocks. The server works on one command
/// after the other, so that this is how long all others may hold it up.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Pipelines of all tasks that wait to be written; the client's 50 would hold up more than that.
const BUFFER: usize = 1024;

/// A connection that comes back: whoever finds it broken says so, and the next to need it begins to
/// make a new one.
pub(crate) struct Link {
    inner: Arc<Inner>,
    /// In a task of its own, so that the deadline of one caller cannot cut it off for all.
    connecting: SharedTask<Numbered>,
    /// What the server's clock shows, as far as somebody has asked.
    pub(crate) clock: ServerClock,
}

/// A connection and its number.
pub(crate) type Numbered = (u64, MultiplexedConnection);

struct Inner {
    clients: Arc<[Client]>,
    /// Whether its connection is served in the background, which renewals need.
    in_background: bool,
    state: Mutex<State>,
    outage: Outage,
    closed: AtomicBool,
}

/// A connection that was idle for so long is tried before it is used: what is sent on a dead one
/// may or may not have arrived.
const IDLE: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether there is an outage to end.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    used: Option<Instant>,
    epoch: u64,
    failures: u32,
}

impl Link {
    pub(crate) fn new(name: &'static str, clients: Arc<[Client]>) -> Self {
        Self::of(name, clients, false)
    }

    /// One that is served while handlers block the application's threads. To cross over to another
    /// thread costs a publish more than it is worth.
    pub(crate) fn in_background(name: &'static str, clients: Arc<[Client]>) -> Self {
        Self::of(name, clients, true)
    }

    fn of(name: &'static str, clients: Arc<[Client]>, in_background: bool) -> Self {
        let (state, closed) = (Mutex::default(), AtomicBool::new(false));
        let outage = Outage::new(name);
        let inner = Inner { clients, in_background, state, outage, closed };
        let (connecting, clock) = (SharedTask::default(), ServerClock::default());
        Self { inner: Arc::new(inner), connecting, clock }
    }

    /// The connection and its number, made anew where there is none.
    ///
    /// # Cancel safety
    /// Dropped, it stops waiting; connecting goes on.
    ///
    /// # Errors
    /// Those of one attempt to connect.
    pub(crate) async fn get(&self) -> Result<Numbered> {
        if let Some(connection) = self.inner.in_use()? {
            return Ok(connection);
        }
        let inner = Arc::clone(&self.inner);
        let connecting = self.connecting.run(|| async move { inner.renew().await });
        if self.inner.in_background {
            Background::scope(connecting).await
        } else {
            connecting.await
        }
    }

    /// Says that the connection of this number is of no more use.
    pub(crate) fn broken(&self, epoch: u64) {
        self.inner.broken(epoch);
    }

    pub(crate) fn close(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        self.inner.state().connection = None;
    }

    /// Why there is no connection, and for how long, when none could be made.
    pub(crate) fn outage(&self) -> Option<String> {
        self.inner.outage.cause()
    }

    /// Connects again after an outage, whether or not anybody needs the connection: what is said of
    /// it, in the log and by [`outage`](Self::outage), shall end with it.
    pub(crate) async fn watch(link: Weak<Self>) {
        loop {
            sleep(LOOK).await;
            let Some(link) = link.upgrade().filter(|link| !link.is_closed()) else { return };
            if link.outage().is_some() {
                let _ = link.get().await;
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Relaxed)
    }

    /// Runs a command once.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T> {
        let (epoch, mut connection) = self.get().await?;
        let answer = timeout(ANSWER_TIMEOUT, command.query_async(&mut connection)).await;
        self.answered(operation, epoch, answer.ok())
    }

    /// Asks for the server's time, by which entries are stored.
    pub(crate) async fn learn_time(&self) -> Result<()> {
        let asked = now();
        let (seconds, micros): (u64, u64) = self.query("time", &redis::cmd("TIME")).await?;
        self.note_time(asked, seconds.saturating_mul(1000).saturating_add(micros / 1000));
        Ok(())
    }

    /// Notes the server's time in milliseconds, when its answer has come.
    pub(crate) fn note_time(&self, asked: SystemTime, millis: u64) {
        if let Some(time) = UNIX_EPOCH.checked_add(Duration::from_millis(millis)) {
            self.clock.note(asked, time, Duration::from_millis(1));
        }
    }

    /// Runs a script once.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        call: &Call<'_>,
    ) -> Result<T> {
        let (epoch, mut connection) = self.get().await?;
        let answer = timeout(ANSWER_TIMEOUT, call.0.invoke_async(&mut connection)).await;
        self.answered(operation, epoch, answer.ok())
    }

    fn answered<T>(
        &self,
        operation: &'static str,
        epoch: u64,
        answer: Option<Result<T, RedisError>>,
    ) -> Result<T> {
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                if !is_answer(&error) || is_replica(&error) {
                    self.broken(epoch);
                }
                Err(unanswered(operation, "the server", error))
            }
            None => {
                self.broken(epoch);
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

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No step in a lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, unless it is to be tried or made first.
    fn in_use(&self) -> Result<Option<Numbered>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(closed("connect"));
        }
        let mut state = self.state();
        if state.used.is_some_and(|used| used.elapsed() >= IDLE) {
            return Ok(None);
        }
        let Some(connection) = state.connection.clone() else { return Ok(None) };
        state.used = Some(Instant::now());
        Ok(Some((state.epoch, connection)))
    }

    /// Tries the connection that was idle, or makes a new one after a pause that grows with the
    /// failures in a row.
    async fn renew(&self) -> Result<Numbered> {
        if let Some(connection) = self.in_use()? {
            return Ok(connection);
        }
        let (epoch, idle, failures) = {
            let state = self.state();
            (state.epoch, state.connection.clone(), state.failures)
        };
        if let Some(mut connection) = idle {
            if is_of_use(&mut connection).await {
                self.state().used = Some(Instant::now());
                return Ok((epoch, connection));
            }
            self.broken(epoch);
        }
        pause(failures).await;
        self.state().failures += 1;
        let connected = connect(&self.clients).await;
        let connection = connected.inspect_err(|error| {
            // Before the first one, whoever connects gets the error.
            if epoch > 0 {
                self.outage.goes_on(error);
            }
        })?;
        self.outage.ends();
        let mut state = self.state();
        if self.closed.load(Ordering::Relaxed) {
            return Err(closed("connect"));
        }
        (state.failures, state.epoch) = (0, state.epoch + 1);
        (state.connection, state.used) = (Some(connection.clone()), Some(Instant::now()));
        Ok((state.epoch, connection))
    }

    fn broken(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch {
            state.connection = None;
        }
    }
}

/// Whether the server at the other end answers, and takes messages: one that became a replica
/// keeps its connections open and answers all that only reads.
async fn is_of_use(connection: &mut MultiplexedConnection) -> bool {
    matches!(timeout(TRY_TIMEOUT, is_a_replica(connection)).await, Ok(Ok(false)))
}

/// Whether it says so; a server that does not tell is taken for none.
async fn is_a_replica(connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let hello = redis::cmd("HELLO").query_async::<HashMap<String, Value>>(connection).await;
    match hello {
        Ok(mut hello) => {
            let role = hello.remove("role").and_then(text);
            Ok(role.is_some_and(|role| role == "replica" || role == "slave"))
        }
        Err(error) if is_answer(&error) => Ok(false),
        Err(error) => Err(error),
    }
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
            let replica = is_a_replica(&mut connection).await?;
            Ok((connection, replica))
        };
        let address = || format!("cannot connect to {}", client.get_connection_info().addr());
        let mut opened = pin!(opened);
        let opened = match timeout(WHY, &mut opened).await {
            Err(_) if speaks_plainly(client).await => {
                let text = format!("{}: the port speaks no TLS: write redis://", address());
                last = Some(error_of(ErrorKind::Config, "connect", text));
                continue;
            }
            Err(_) => timeout(CONNECT_TIMEOUT.saturating_sub(WHY), opened).await,
            opened => opened,
        };
        match opened {
            Ok(Ok((connection, false))) => return Ok(connection),
            Ok(Ok((_, true))) => {
                let text = format!("{}: it is a replica", address());
                last = Some(error_of(ErrorKind::Unavailable, "connect", text));
            }
            Ok(Err(error)) => last = Some(why(client, &address(), error).await),
            Err(_) => {
                let text = format!("{} within {CONNECT_TIMEOUT:?}", address());
                last = Some(error_of(ErrorKind::Unavailable, "connect", text));
            }
        }
    }
    Err(last.unwrap_or_else(|| error_of(ErrorKind::Config, "connect", "the URL names no host")))
}

/// Whether a server that is to speak TLS answers without. It waits for the end of a line then, and
/// says nothing to what begins TLS.
async fn speaks_plainly(client: &Client) -> bool {
    let ConnectionAddr::TcpTls { host, port, .. } = client.get_connection_info().addr() else {
        return false;
    };
    let Ok(plain) = Client::open(ConnectionAddr::Tcp(host.clone(), *port)) else { return false };
    let asked = spawn_blocking(move || plain.get_connection_with_timeout(WHY)).await;
    match asked {
        Ok(Ok(_)) => true,
        // It wants a login first.
        Ok(Err(error)) => {
            is_answer(&error) || error.kind() == redis::ErrorKind::AuthenticationFailed
        }
        Err(_) => false,
    }
}

/// Why connecting failed.
///
/// A server with TLS says so only after the handshake, or not at all: the connection, which has a
/// task of its own, then just ends. One that blocks, made for this, is told.
async fn why(client: &Client, what: &str, error: RedisError) -> Error {
    let ended = matches!(error.kind(), redis::ErrorKind::Io | redis::ErrorKind::Parse)
        && !error.is_connection_refusal()
        && !is_of_tls(&error);
    let (tls, asked) = match client.get_connection_info().addr() {
        _ if !ended => (false, None),
        ConnectionAddr::TcpTls { .. } => (true, Some(client.clone())),
        ConnectionAddr::Tcp(host, port) => (false, over_tls(host.clone(), *port).ok()),
        _ => (false, None),
    };
    let answer = match asked {
        Some(asked) => spawn_blocking(move || asked.get_connection_with_timeout(WHY).err()).await,
        None => Ok(None),
    };
    match answer.ok().flatten() {
        Some(cause) if tls && is_of_tls(&cause) => failed("connect", what, cause),
        // It had a certificate to show, or asked for one.
        Some(cause) if is_of_tls(&cause) && !cause.to_string().contains("corrupt message") => {
            let text = format!("{what}: the port speaks TLS: write rediss://");
            error_of(ErrorKind::Config, "connect", text)
        }
        _ => failed("connect", what, error),
    }
}
