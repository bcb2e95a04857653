use std::path::PathBuf;
use std::sync::Arc;

use anybroker_core::adapter::{Options, Server, option_methods, server_methods};
use anybroker_core::{BrokerUrl, Error, ErrorKind, Result};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::RedisBroker;
use crate::error::{error_of, failed};

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method is an option of the URL too: `rediss://user:password@host/0?prefix=dev`.
///
/// # Defaults
/// `redis://localhost:6379/0`, no user, no prefix, `declare=create`, one attempt to connect, a
/// warning where the server's settings break the guarantee, nothing removed from streams of others,
/// 30 s for a publish, payloads up to 16 MiB, the system's certificate authorities.
#[derive(Clone, Debug)]
#[must_use = "nothing is connected until connect is called"]
pub struct RedisBuilder(pub(crate) Settings);

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) server: Server,
    pub(crate) options: Options,
    pub(crate) database: i64,
    pub(crate) require_durability: bool,
    pub(crate) trim_foreign: bool,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self(Settings {
            server: Server::local(6379, 16 * 1024 * 1024),
            options: Options::default(),
            database: 0,
            require_durability: false,
            trim_foreign: false,
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
        let (plain, encrypted) =
            ([("redis", 6379), ("valkey", 6379)], [("rediss", 6379), ("valkeys", 6379)]);
        settings.server.read(&mut url, &plain, &encrypted)?;
        settings.options.read(&mut url)?;
        if !url.path().is_empty() {
            settings.database = url.path().parse().map_err(|_| {
                config("the path is no database: write its number, as in redis://host/0")
            })?;
        }
        if let Some(require) = url.choice("durability", &[("warn", false), ("require", true)])? {
            settings.require_durability = require;
        }
        if let Some(trim) = url.choice("trim-foreign", &[("no", false), ("yes", true)])? {
            settings.trim_foreign = trim;
        }
        url.finish()?;
        Ok(self)
    }

    option_methods!("`--`", "a database");
    server_methods!(
        "Sets the largest message in bytes; 16 MiB unless set. Each delivery is in memory whole, on both sides.",
        "instead of the system's"
    );

    /// Refuses a server whose settings break the guarantee, or do not show; otherwise that is a
    /// warning. See the [crate's documentation](crate).
    pub fn require_durability(mut self) -> Self {
        self.0.require_durability = true;
        self
    }

    /// Removes what all groups have finished from streams that somebody else made too; otherwise
    /// only from those that this library made. Whoever reads such a stream without a group loses
    /// what was removed.
    pub fn trim_foreign(mut self) -> Self {
        self.0.trim_foreign = true;
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
        self.0.options.validate()?;
        Ok(self.0)
    }
}

impl Settings {
    /// A client for each host.
    pub(crate) fn clients(&self) -> Result<Vec<Client>> {
        let wrong = |error| failed("connect", "the connection's settings", error);
        let mut login = RedisConnectionInfo::default().set_db(self.database);
        if let Some(user) = &self.server.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.server.password {
            login = login.set_password(password);
        }
        let certificates = self.certificates()?;
        let client = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            let address = if self.server.tls {
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
        self.server.hosts.iter().map(client).collect()
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>> {
        if !self.server.tls {
            return Ok(None);
        }
        choose_provider();
        let client_tls = match &self.server.identity {
            Some((certificate, key)) => {
                let (client_cert, _) = certificate_in(certificate)?;
                Some(ClientTlsConfig { client_cert, client_key: key_in(key)? })
            }
            None => None,
        };
        let root_cert = self.server.ca.as_ref().map(authority_in).transpose()?;
        Ok(Some(TlsCertificates { client_tls, root_cert }))
    }
}

/// The client takes the process's provider; whoever chose one before keeps it.
fn choose_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Who finds out whether a port speaks TLS, and trusts nobody.
pub(crate) fn over_tls(host: String, port: u16) -> Result<Client, RedisError> {
    choose_provider();
    let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    let nobody = TlsCertificates { client_tls: None, root_cert: Some(Vec::new()) };
    Client::build_with_tls(address.into_connection_info()?, nobody)
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| config(format!("cannot read {}", path.display())).with_source(error))
}

/// What a file holds, and its first certificate.
fn certificate_in(path: &PathBuf) -> Result<(Vec<u8>, CertificateDer<'static>)> {
    let text = read(path)?;
    match CertificateDer::pem_slice_iter(&text).next() {
        Some(Ok(certificate)) => Ok((text, certificate)),
        _ => Err(config(format!("{} holds no certificate in PEM", path.display()))),
    }
}

fn authority_in(path: &PathBuf) -> Result<Vec<u8>> {
    let (text, certificate) = certificate_in(path)?;
    rustls::RootCertStore::empty().add(certificate).map_err(|error| {
        config(format!("{} is no certificate of an authority", path.display())).with_source(error)
    })?;
    Ok(text)
}

fn key_in(path: &PathBuf) -> Result<Vec<u8>> {
    let text = read(path)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(config(format!("{} holds no private key in PEM", path.display()))),
    }
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    error_of(ErrorKind::Config, "connect", text)
}
