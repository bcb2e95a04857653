use std::num::NonZeroU16;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anybroker_core::adapter::{Background, Outage, pause};
use anybroker_core::{Error, ErrorKind, Result};
use futures_util::StreamExt;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, interval, timeout};

use crate::error::{closed, error_of, failed};
use crate::options::Settings;
use crate::transport;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is given up after twice this.
const HEARTBEAT_SECONDS: u16 = 15;
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A connection that comes back: each new one is an epoch, and what belonged to the former one is
/// gone.
#[derive(Clone)]
pub(crate) struct Link {
    state: watch::Receiver<State>,
    outage: Arc<Outage>,
}

/// Keeps the connection up; ends it when dropped.
pub(crate) struct Supervisor {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct State {
    /// How many connections there were.
    epoch: u64,
    connection: Option<Arc<Connection>>,
    /// Whether a number of it cannot be used any more; see [`Link::channel`].
    spent: Arc<AtomicBool>,
    blocked: bool,
    closed: bool,
}

impl Link {
    /// Connects, and keeps connecting.
    pub(crate) async fn open(
        settings: Arc<Settings>,
        name: &'static str,
    ) -> Result<(Self, Supervisor)> {
        let first = settings.options.connect(|| connect(&settings, name)).await?;
        let (sender, state) = watch::channel(State::default());
        let (stop, stopped) = watch::channel(false);
        let outage = Arc::new(Outage::new(name));
        let link = Self { state, outage: Arc::clone(&outage) };
        let task = tokio::spawn(supervise(settings, name, first, outage, sender, stopped));
        Ok((link, Supervisor { stop, task }))
    }

    /// Waits for the connection.
    ///
    /// # Errors
    /// `Closed`.
    pub(crate) async fn connection(&self, operation: &'static str) -> Result<Arc<Connection>> {
        self.when(operation, |state| state.connection.is_some()).await
    }

    /// Waits for a connection that takes publishes.
    ///
    /// # Errors
    /// `Closed`.
    pub(crate) async fn writable(&self, operation: &'static str) -> Result<Arc<Connection>> {
        self.when(operation, |state| state.connection.is_some() && !state.blocked).await
    }

    async fn when(
        &self,
        operation: &'static str,
        ready: impl Fn(&State) -> bool,
    ) -> Result<Arc<Connection>> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| state.closed || ready(state)).await;
        match state.ok().and_then(|state| state.connection.clone()) {
            Some(connection) => Ok(connection),
            None => Err(closed(operation)),
        }
    }

    /// Opens a channel as soon as there is a connection.
    ///
    /// # Cancel safety
    /// It is opened all the same, and closed, when the future is dropped: an answer that comes for a
    /// channel which the client has forgotten ends the connection.
    ///
    /// The client keeps the error with which the server closed a channel, and answers it to whoever
    /// gets the number next: such a number is passed over and never used again, and a connection
    /// that has no other one left is replaced.
    ///
    /// # Errors
    /// `Closed`, or what the broker answers.
    pub(crate) async fn channel(&self, operation: &'static str) -> Result<Channel> {
        let link = self.clone();
        apart(async move { link.open_channel(operation).await }).await
    }

    async fn open_channel(&self, operation: &'static str) -> Result<Channel> {
        loop {
            let connection = self.connection(operation).await?;
            let spent = Arc::clone(&self.state.borrow().spent);
            let created = async { Ok(connection.create_channel().await) };
            match while_connected(operation, || connection.status().connected(), created).await? {
                Err(error) if error.is_amqp_soft_error() => spent.store(true, Ordering::Relaxed),
                Err(error)
                    if matches!(error.kind(), lapin::ErrorKind::ChannelsLimitReached)
                        && spent.load(Ordering::Relaxed) =>
                {
                    tracing::warn!(
                        "errors have used up the connection's channels; connecting anew"
                    );
                    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
                }
                opened => {
                    return opened.map_err(|error| failed(operation, "opening a channel", error));
                }
            }
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.borrow().epoch
    }

    /// Why there is no connection, and for how long, when there is none.
    pub(crate) fn outage(&self) -> Option<String> {
        self.outage.cause()
    }

    /// Whether the broker takes no publishes for now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.state.borrow().blocked
    }
}

/// Runs work that must not be dropped half way in a task of its own. Who waits for it may give up;
/// the work goes on.
///
/// # Errors
/// Those of `work`; `Unavailable` when its task was ended.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        let text = "a task of the client was ended: its runtime stops, or it panicked";
        Err(error_of(ErrorKind::Unavailable, "wait", text).with_source(error))
    })
}

/// How long the client has to answer after its connection ended, and how often that is looked at.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Waits for what is done on a connection, as long as that lives and a moment more.
///
/// The client forgets some of those who wait when their connection ends at the moment at which they
/// ask: they would wait for ever, and with them all who share the work.
///
/// # Errors
/// Those of `work`; `Unavailable` when the connection has ended and no answer has come since.
async fn while_connected<T>(
    operation: &'static str,
    is_connected: impl Fn() -> bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    let mut ended = false;
    loop {
        match timeout(LAST_WORD, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) if ended => {
                let text = "the connection ended before the broker answered";
                return Err(error_of(ErrorKind::Unavailable, operation, text));
            }
            Err(_) => ended = !is_connected(),
        }
    }
}

/// As [`while_connected`], for what is done on a channel.
pub(crate) async fn while_open<T>(
    operation: &'static str,
    channel: &Channel,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // One that is being closed still gets its answer, however slow the broker is.
    let is_open = || channel.status().connected() || channel.status().closing();
    while_connected(operation, is_open, work).await
}

/// How many numbers for channels a connection has.
fn numbers(connection: &Connection) -> u16 {
    // None stands for as many as there are.
    NonZeroU16::new(connection.configuration().channel_max()).map_or(u16::MAX, NonZeroU16::get)
}

/// Where to ask what may be answered with an error, which uses up a channel's number (see
/// [`Link::channel`]): on a connection of its own, opened when first asked, and replaced before it
/// has used one twice.
pub(crate) struct Questions {
    settings: Arc<Settings>,
    asking: Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    /// How many more can be asked there.
    open: Option<(Arc<Connection>, u16)>,
    /// A task, since who asks may give up before all hosts are tried.
    opening: JoinSet<Result<Connection>>,
}

impl Asking {
    async fn connection(&mut self, settings: &Arc<Settings>) -> Result<Arc<Connection>> {
        let usable = |(open, left): &(Arc<Connection>, u16)| *left > 0 && open.status().connected();
        let (connection, left) = match self.open.take().filter(usable) {
            Some(open) => open,
            None => {
                if self.opening.is_empty() {
                    let settings = Arc::clone(settings);
                    self.opening.spawn(async move { connect(&settings, "ask").await });
                }
                let connection = Arc::new(opened(self.opening.join_next().await)?);
                let numbers = numbers(&connection);
                (connection, numbers)
            }
        };
        self.open = Some((Arc::clone(&connection), left - 1));
        Ok(connection)
    }
}

/// The link is up, with the same settings: what keeps this connection from it passes.
fn opened(
    joined: Option<std::result::Result<Result<Connection>, JoinError>>,
) -> Result<Connection> {
    let text = "a second connection, to ask the broker on, could not be opened";
    let unavailable = error_of(ErrorKind::Unavailable, "connect", text);
    match joined {
        Some(Ok(connected)) => connected.map_err(|error| unavailable.with_source(error)),
        Some(Err(error)) => Err(unavailable.with_source(error)),
        None => Err(unavailable),
    }
}

impl Questions {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, asking: Mutex::default() }
    }

    /// Asks one question on a channel of its own, as soon as the link is up.
    ///
    /// # Cancel safety
    /// The question goes on to its answer when the future is dropped. A channel that the client
    /// closes while the server closes it too, with the answer that something does not exist, costs
    /// the connection, and all that is asked there would get that answer.
    ///
    /// # Errors
    /// `Closed`, `Unavailable`, or what the broker answers.
    pub(crate) async fn ask<T: Send + 'static, F>(
        self: &Arc<Self>,
        link: &Link,
        operation: &'static str,
        question: impl FnOnce(Channel) -> F + Send + 'static,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (questions, link) = (Arc::clone(self), link.clone());
        apart(async move {
            link.connection(operation).await?;
            let connection = questions.asking.lock().await.connection(&questions.settings).await?;
            let asked = async {
                let channel = connection.create_channel().await;
                question(channel.map_err(|error| failed(operation, "opening a channel", error))?)
                    .await
            };
            while_connected(operation, || connection.status().connected(), asked).await
        })
        .await
    }

    pub(crate) async fn close(&self) {
        // Who is still connecting is cut off by its own timeout.
        let Ok(mut asking) = timeout(CLOSE_TIMEOUT, self.asking.lock()).await else { return };
        let asking = std::mem::take(&mut *asking);
        if let Some((connection, _)) = asking.open {
            let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
        }
    }
}

impl Supervisor {
    pub(crate) async fn close(&self) {
        self.stop.send_replace(true);
        // The supervisor drops its receiver when the connection is closed.
        self.stop.closed().await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn supervise(
    settings: Arc<Settings>,
    name: &'static str,
    first: Connection,
    outage: Arc<Outage>,
    state: watch::Sender<State>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut next = Some(first);
    let (mut epoch, mut attempt, mut since) = (0_u64, 0, Instant::now());
    loop {
        let connection = match next.take() {
            Some(connection) => Arc::new(connection),
            None => tokio::select! {
                _ = stopped.changed() => break,
                connected = connect(&settings, name) => match connected {
                    Ok(connection) => {
                        outage.ends();
                        since = Instant::now();
                        Arc::new(connection)
                    }
                    Err(error) => {
                        outage.goes_on(&error);
                        attempt += 1;
                        tokio::select! {
                            _ = stopped.changed() => break,
                            () = pause(attempt) => continue,
                        }
                    }
                },
            },
        };
        epoch += 1;
        let spent = Arc::default();
        let up = |blocked| State {
            epoch,
            connection: Some(connection.clone()),
            spent: Arc::clone(&spent),
            blocked,
            closed: false,
        };
        state.send_replace(up(false));
        tokio::select! {
            _ = stopped.changed() => {
                state.send_replace(State { closed: true, epoch, ..State::default() });
                let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
                return;
            }
            cause = watch(&connection, |blocked| { state.send_replace(up(blocked)); }) => {
                outage.goes_on(cause);
            }
        }
        state.send_replace(State { epoch, ..State::default() });
        // A connection that lived for a while may come back at once; one that did not may not.
        if since.elapsed() > LONGEST_BACKOFF {
            attempt = 0;
        }
        attempt += 1;
        pause(attempt).await;
    }
    state.send_replace(State { closed: true, epoch, ..State::default() });
}

/// Resolves when the connection is gone, with why, where anybody says so.
async fn watch(connection: &Connection, blocked: impl Fn(bool)) -> Error {
    const LOST: &str = "the connection was lost";
    let mut cause = error_of(ErrorKind::Unavailable, "connect", LOST);
    let mut events = connection.events_listener();
    // Not every end of a connection is an event.
    let mut check = interval(Duration::from_secs(1));
    while connection.status().connected() {
        tokio::select! {
            _ = check.tick() => {}
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "the broker takes no publishes for now");
                    blocked(true);
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker takes publishes again");
                    blocked(false);
                }
                // An error of a channel is its user's concern.
                Some(Event::Error(error)) if !error.is_amqp_soft_error() => {
                    cause = failed("connect", LOST, error);
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    cause
}

/// Tries each host once. The connection is served in the background: a handler that blocks its
/// thread must not keep it from sending heartbeats, or the broker takes it for dead.
async fn connect(settings: &Settings, name: &str) -> Result<Connection> {
    Background::scope(try_hosts(settings, name)).await
}

async fn try_hosts(settings: &Settings, name: &str) -> Result<Connection> {
    let tls = tls(settings).await?;
    let mut result = Err(error_of(ErrorKind::Config, "connect", "there is no host to connect to"));
    for (host, port) in &settings.server.hosts {
        let scheme = if settings.server.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        let uri = AMQPUri {
            scheme,
            authority: AMQPAuthority { userinfo: login(settings), host: host.clone(), port: *port },
            vhost: settings.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT_SECONDS),
                ..AMQPQueryString::default()
            },
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("anybroker {name}").into());
        let connected = transport::connect(uri, properties, tls.clone());
        result = match timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => {
                let scheme = if settings.server.tls { "amqps" } else { "amqp" };
                Err(failed("connect", &format!("connecting to {scheme}://{host}:{port}"), error))
            }
            Err(_) => {
                let text = format!("{host}:{port} did not answer within 10 s");
                Err(error_of(ErrorKind::Unavailable, "connect", text))
            }
        };
    }
    result
}

fn login(settings: &Settings) -> AMQPUserInfo {
    let (user, password) = match &settings.server.user {
        Some(user) => (user.as_str(), settings.server.password.as_deref().unwrap_or_default()),
        None => ("guest", "guest"),
    };
    AMQPUserInfo { username: user.to_owned(), password: password.to_owned() }
}

async fn tls(settings: &Settings) -> Result<OwnedTLSConfig> {
    let mut config = OwnedTLSConfig::default();
    if !settings.server.tls {
        return Ok(config);
    }
    if let Some(ca) = &settings.server.ca {
        config.cert_chain = Some(String::from_utf8_lossy(&read(ca).await?).into_owned());
    }
    if let Some((certificate, key)) = &settings.server.identity {
        config.identity =
            Some(OwnedIdentity::PKCS8 { pem: read(certificate).await?, key: read(key).await? });
    }
    Ok(config)
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    let owned = path.to_owned();
    let content = tokio::task::spawn_blocking(move || std::fs::read(owned)).await;
    content.unwrap_or_else(|_| Err(std::io::Error::other("reading was cut off"))).map_err(|error| {
        let text = format!("cannot read the certificate file {}", path.display());
        error_of(ErrorKind::Config, "connect", text).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn who_waits_on_a_connection_that_has_ended_is_told() {
        let forgotten = while_connected("test", || false, pending::<Result<()>>()).await;
        assert_eq!(forgotten.expect_err("no answer comes").kind(), ErrorKind::Unavailable);
        let answered = while_connected("test", || false, ready(Ok(1))).await;
        assert_eq!(answered.expect("it was there"), 1);
        // Longer than it takes to notice an end.
        let slow = async {
            sleep(LAST_WORD * 5 / 2).await;
            Ok(2)
        };
        assert_eq!(while_connected("test", || true, slow).await.expect("it came late"), 2);
    }
}
