use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{BrokerUrl, Declare, Destination, Error, ErrorKind, Result};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates,
};

use crate::RedisBroker;
use crate::error::{error_of, failed};

const KNOWN: &[&str] = &[
    "prefix",
    "declare",
    "connect",
    "durability",
    "publish-timeout",
    "max-payload",
    "ca",
    "cert",
    "key",
];

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method is an option of the URL too: `rediss://user:password@host/0?prefix=dev`.
///
/// # Defaults
/// `redis://localhost:6379/0`, no user, no prefix, `declare=create`, one attempt to connect, a
/// warning where the server's settings break the guarantee, 30 s for a publish, payloads up to
/// 16 MiB, the system's certificate authorities.
#[derive(Clone)]
#[must_use = "nothing is connected until connect is called"]
pub struct RedisBuilder(pub(crate) Settings);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) database: i64,
    pub(crate) prefix: Option<String>,
    pub(crate) declare: Declare,
    pub(crate) wait: bool,
    pub(crate) require_durability: bool,
    pub(crate) publish_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self(Settings {
            tls: false,
            user: None,
            password: None,
            hosts: vec![("localhost".to_owned(), 6379)],
            database: 0,
            prefix: None,
            declare: Declare::Create,
            wait: false,
            require_durability: false,
            publish_timeout: Duration::from_secs(30),
            max_payload: 16 * 1024 * 1024,
            ca: None,
            identity: None,
        })
    }
}

impl RedisBuilder {
    /// Takes address, credentials and options from a URL.
    ///
    /// # Errors
    /// `Config` for an unknown option or a value that does not parse.
    pub fn url(mut self, mut url: BrokerUrl) -> Result<Self> {
        let settings = &mut self.0;
        settings.tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            other => {
                return Err(config(format!(
                    "scheme {other:?} is not Redis's: write redis:// or rediss://"
                )));
            }
        };
        settings.hosts = url.hosts(6379)?;
        if url.user().is_some() || url.password().is_some() {
            settings.user = url.user().map(str::to_owned);
            settings.password = url.password().map(str::to_owned);
        }
        if !url.path().is_empty() {
            settings.database = url.path().parse().map_err(|_| {
                config("the path is no database: write its number, as in redis://host/0")
            })?;
        }
        if let Some(prefix) = url.option("prefix", "a name such as dev")? {
            settings.prefix = Some(prefix);
        }
        settings.declare = url.declare()?;
        settings.wait = one_of(&mut url, "connect", "once", "wait")?;
        settings.require_durability = one_of(&mut url, "durability", "warn", "require")?;
        if let Some(timeout) = url.duration("publish-timeout")? {
            settings.publish_timeout = timeout;
        }
        if let Some(max) = url.option("max-payload", "a number of bytes")? {
            settings.max_payload = max;
        }
        settings.ca = url.option("ca", "the path of a PEM file")?;
        settings.identity = match (
            url.option("cert", "the path of a PEM file")?,
            url.option("key", "the path of a PEM file")?,
        ) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(config("options cert and key belong together: write both")),
        };
        url.finish(KNOWN)?;
        Ok(self)
    }

    /// Sets user and password; none unless set.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        (self.0.user, self.0.password) = (Some(user.into()), Some(password.into()));
        self
    }

    /// Puts `prefix` and `--` before every name that is not native, so that several environments
    /// can share a database.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = Some(prefix.into());
        self
    }

    /// Sets who creates streams and groups.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.0.declare = declare;
        self
    }

    /// Keeps trying until the server answers, instead of failing at the first attempt.
    pub fn wait_for_broker(mut self) -> Self {
        self.0.wait = true;
        self
    }

    /// Refuses a server whose settings break the guarantee, or do not show; otherwise that is a
    /// warning. See the [crate's documentation](crate).
    pub fn require_durability(mut self) -> Self {
        self.0.require_durability = true;
        self
    }

    /// Sets how long a publish may take, waiting for a connection included; 30 s unless set.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout;
        self
    }

    /// Sets the largest message in bytes; 16 MiB unless set. Each delivery is in memory whole, on
    /// both sides.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.0.max_payload = bytes;
        self
    }

    /// Trusts the certificate authorities in this PEM file, instead of the system's.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows this certificate to the server; PEM files.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.0.identity = Some((cert.into(), key.into()));
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `Config`, `Unavailable` or `Denied`, with what to write instead.
    pub async fn connect(self) -> Result<Arc<RedisBroker>> {
        RedisBroker::open(self.checked()?).await
    }

    pub(crate) fn checked(self) -> Result<Settings> {
        if let Some(prefix) = &self.0.prefix {
            Destination::queue(prefix.clone()).validate()?;
        }
        Ok(self.0)
    }
}

impl Settings {
    /// A client for each host.
    pub(crate) fn clients(&self) -> Result<Vec<Client>> {
        let wrong = |error| failed("connect", "the connection's settings", error);
        let mut login = RedisConnectionInfo::default().set_db(self.database);
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        let certificates = self.certificates()?;
        let client = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            let address = if self.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            };
            let info: ConnectionInfo = address.into_connection_info().map_err(wrong)?;
            let info = info.set_redis_settings(login.clone());
            match &certificates {
                Some(certificates) => Client::build_with_tls(info, certificates.clone()),
                None => Client::open(info),
            }
            .map_err(wrong)
        };
        self.hosts.iter().map(client).collect()
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>> {
        if !self.tls {
            return Ok(None);
        }
        // The client takes the process's provider; whoever chose one before keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client_tls = match &self.identity {
            Some((certificate, key)) => {
                Some(ClientTlsConfig { client_cert: pem(certificate)?, client_key: pem(key)? })
            }
            None => None,
        };
        Ok(Some(TlsCertificates { client_tls, root_cert: self.ca.as_ref().map(pem).transpose()? }))
    }
}

fn pem(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| config(format!("cannot read {}", path.display())).with_source(error))
}

/// Whether an option has its second value.
fn one_of(url: &mut BrokerUrl, name: &str, no: &str, yes: &str) -> Result<bool> {
    match url.option::<String>(name, no)?.as_deref() {
        Some(value) if value == yes => Ok(true),
        Some(value) if value != no => {
            Err(config(format!("option {name}={value} is not understood: write {no} or {yes}")))
        }
        _ => Ok(false),
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("hosts", &self.0.hosts)
            .field("database", &self.0.database)
            .field("prefix", &self.0.prefix)
            .field("declare", &self.0.declare)
            .finish_non_exhaustive()
    }
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    error_of(ErrorKind::Config, "connect", text)
}
