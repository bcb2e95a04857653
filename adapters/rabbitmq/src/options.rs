use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{BrokerUrl, Declare, Destination, ErrorKind, Result};
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::RabbitmqBroker;
use crate::error::error_of;

const KNOWN: &[&str] =
    &["prefix", "declare", "connect", "publish-timeout", "max-payload", "ca", "cert", "key"];

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method is an option of the URL too: `amqps://user:password@host/vhost?prefix=dev`.
///
/// # Defaults
/// `amqp://guest:guest@localhost:5672/%2F`, no prefix, `declare=create`, one attempt to connect,
/// 30 s for a publish, payloads up to 16 MiB, the system's certificate authorities.
#[derive(Clone)]
#[must_use = "nothing is connected until connect is called"]
pub struct RabbitmqBuilder(pub(crate) Settings);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) vhost: String,
    pub(crate) prefix: Option<String>,
    pub(crate) declare: Declare,
    pub(crate) wait: bool,
    pub(crate) publish_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) exchanges: HashMap<String, ExchangeKind>,
    pub(crate) bindings: HashMap<(String, String), Vec<Binding>>,
}

/// Which messages of an exchange a group gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub(crate) routing_key: String,
    pub(crate) arguments: FieldTable,
}

impl Binding {
    /// Those whose type matches: exactly on a direct exchange, as a pattern (`order.*`, `#`) on a
    /// topic exchange.
    pub fn key(routing_key: impl Into<String>) -> Self {
        Self { routing_key: routing_key.into(), arguments: FieldTable::default() }
    }

    /// Those that have all of these headers, on a headers exchange. An attribute of the envelope
    /// is the header `ce-name`.
    pub fn all_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::headers("all", headers)
    }

    /// Those that have any of these headers, on a headers exchange.
    pub fn any_header<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::headers("any", headers)
    }

    fn headers<'a>(mode: &'a str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut arguments = FieldTable::default();
        for (name, value) in [("x-match", mode)].into_iter().chain(headers) {
            // A name that AMQP cannot carry matches nothing.
            if let Ok(name) = ShortString::try_new(name) {
                arguments.insert(name, AMQPValue::LongString(value.into()));
            }
        }
        Self { routing_key: String::new(), arguments }
    }
}

impl Default for RabbitmqBuilder {
    fn default() -> Self {
        Self(Settings {
            tls: false,
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            hosts: vec![("localhost".to_owned(), 5672)],
            vhost: "/".to_owned(),
            prefix: None,
            declare: Declare::Create,
            wait: false,
            publish_timeout: Duration::from_secs(30),
            max_payload: 16 * 1024 * 1024,
            ca: None,
            identity: None,
            exchanges: HashMap::new(),
            bindings: HashMap::new(),
        })
    }
}

impl RabbitmqBuilder {
    /// Takes address, credentials and options from a URL.
    ///
    /// # Errors
    /// `Config` for an unknown option or a value that does not parse.
    pub fn url(mut self, mut url: BrokerUrl) -> Result<Self> {
        let settings = &mut self.0;
        settings.tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            other => {
                return Err(config(format!(
                    "scheme {other:?} is not RabbitMQ's: write amqp:// or amqps://"
                )));
            }
        };
        settings.hosts = url.hosts(if settings.tls { 5671 } else { 5672 })?;
        if let Some(user) = url.user() {
            user.clone_into(&mut settings.user);
            url.password().unwrap_or_default().clone_into(&mut settings.password);
        }
        if !url.path().is_empty() {
            url.path().clone_into(&mut settings.vhost);
        }
        if let Some(prefix) = url.option("prefix", "a name such as dev")? {
            settings.prefix = Some(prefix);
        }
        settings.declare = url.declare()?;
        settings.wait = match url.option::<String>("connect", "once or wait")?.as_deref() {
            None | Some("once") => false,
            Some("wait") => true,
            Some(other) => {
                return Err(config(format!(
                    "option connect={other} is not understood: write once or wait"
                )));
            }
        };
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

    /// Sets user and password; `guest` and `guest` unless set.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        (self.0.user, self.0.password) = (user.into(), password.into());
        self
    }

    /// Puts `prefix` and a dot before every name that is not native, so that several environments
    /// can share a virtual host.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = Some(prefix.into());
        self
    }

    /// Sets who creates exchanges and queues.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.0.declare = declare;
        self
    }

    /// Keeps trying until the broker answers, instead of failing at the first attempt.
    pub fn wait_for_broker(mut self) -> Self {
        self.0.wait = true;
        self
    }

    /// Sets how long a publish may take, waiting for a connection included; 30 s unless set.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout;
        self
    }

    /// Sets the broker's `max_message_size` in bytes; 16 MiB unless set, as on RabbitMQ 4 (older
    /// ones take 128 MiB).
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.0.max_payload = bytes;
        self
    }

    /// Trusts the certificate authorities in this PEM file too.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows this certificate to the broker; PEM files, the key in PKCS#8.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.0.identity = Some((cert.into(), key.into()));
        self
    }

    /// Makes a topic an exchange of another kind; a topic exchange unless set. The routing key is
    /// the envelope's type on each.
    pub fn exchange(mut self, topic: impl Into<String>, kind: ExchangeKind) -> Self {
        self.0.exchanges.insert(topic.into(), kind);
        self
    }

    /// Lets a group of a topic have only what a binding matches, or one of several. Without, it
    /// gets all; a direct exchange needs one. Bindings that exist already stay.
    pub fn bind(
        mut self,
        topic: impl Into<String>,
        group: impl Into<String>,
        binding: Binding,
    ) -> Self {
        self.0.bindings.entry((topic.into(), group.into())).or_default().push(binding);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `Config`, `Unavailable`, `Denied` or `NotFound`, with what to write instead.
    pub async fn connect(self) -> Result<Arc<RabbitmqBroker>> {
        if let Some(prefix) = &self.0.prefix {
            Destination::queue(prefix.clone()).validate()?;
        }
        if self.0.vhost.len() > 255 {
            return Err(config("the virtual host has more than 255 bytes, which no broker has"));
        }
        RabbitmqBroker::open(self.0).await
    }
}

impl fmt::Debug for RabbitmqBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqBuilder")
            .field("hosts", &self.0.hosts)
            .field("vhost", &self.0.vhost)
            .field("prefix", &self.0.prefix)
            .field("declare", &self.0.declare)
            .finish_non_exhaustive()
    }
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> anybroker_core::Error {
    error_of(ErrorKind::Config, "connect", text)
}
