use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{BoxError, BrokerUrl, Declare, Destination, Error, ErrorKind, Result};
use rdkafka::client::OAuthToken;

use crate::KafkaBroker;
use crate::error::error_of;

const KNOWN: &[&str] = &[
    "prefix",
    "declare",
    "connect",
    "publish-timeout",
    "max-payload",
    "partitions",
    "replication",
    "group-protocol",
    "session-timeout",
    "sasl",
    "ca",
    "cert",
    "key",
];

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method but the last two is an option of the URL too:
/// `kafka+ssl://user:password@host/?sasl=scram-sha-512&partitions=12`.
///
/// # Defaults
/// `kafka://localhost:9092`, no prefix, `declare=create`, one attempt to connect, 30 s for a
/// publish, payloads up to 1 MiB, 4 partitions, the broker's replication, classic groups with a
/// session of 10 s, SASL PLAIN where the URL names a user.
#[derive(Clone)]
#[must_use = "nothing is connected until connect is called"]
pub struct KafkaBuilder(pub(crate) Settings);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) credentials: Option<(String, String)>,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) prefix: Option<String>,
    pub(crate) declare: Declare,
    pub(crate) wait: bool,
    pub(crate) publish_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) partitions: u16,
    pub(crate) replication: Option<u16>,
    pub(crate) protocol: GroupProtocol,
    pub(crate) session_timeout: Duration,
    pub(crate) sasl: Sasl,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) token: Option<TokenProvider>,
    pub(crate) native: BTreeMap<String, String>,
}

/// How the members of a group agree on who reads which partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupProtocol {
    /// The protocol that every broker knows, with cooperative rebalancing.
    #[default]
    Classic,
    /// KIP-848, which the broker decides; Kafka 4. The broker sets the session's length, 45 s by
    /// default: for so long a killed consumer's messages wait.
    Consumer,
}

/// How user and password are shown to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sasl {
    /// As they are; use TLS.
    #[default]
    Plain,
    /// By a challenge, with SHA-256.
    ScramSha256,
    /// By a challenge, with SHA-512.
    ScramSha512,
}

/// What makes the tokens of `OAUTHBEARER`.
pub(crate) type TokenProvider = Arc<dyn Fn() -> Result<OAuthToken, BoxError> + Send + Sync>;

impl Default for KafkaBuilder {
    fn default() -> Self {
        Self(Settings {
            tls: false,
            credentials: None,
            hosts: vec![("localhost".to_owned(), 9092)],
            prefix: None,
            declare: Declare::Create,
            wait: false,
            publish_timeout: Duration::from_secs(30),
            max_payload: 1024 * 1024,
            partitions: 4,
            replication: None,
            protocol: GroupProtocol::Classic,
            session_timeout: Duration::from_secs(10),
            sasl: Sasl::Plain,
            ca: None,
            identity: None,
            token: None,
            native: BTreeMap::new(),
        })
    }
}

impl KafkaBuilder {
    /// Takes address, credentials and options from a URL.
    ///
    /// # Errors
    /// `Config` for an unknown option or a value that does not parse.
    pub fn url(mut self, mut url: BrokerUrl) -> Result<Self> {
        let settings = &mut self.0;
        settings.tls = match url.scheme() {
            "kafka" => false,
            "kafka+ssl" => true,
            other => {
                return Err(config(format!(
                    "scheme {other:?} is not Kafka's: write kafka:// or kafka+ssl://"
                )));
            }
        };
        settings.hosts = url.hosts(9092)?;
        if !url.path().is_empty() {
            return Err(config(format!(
                "Kafka has no databases or virtual hosts: drop {:?} behind the host",
                url.path()
            )));
        }
        if let Some(user) = url.user() {
            let password = url.password().unwrap_or_default().to_owned();
            settings.credentials = Some((user.to_owned(), password));
        }
        if let Some(prefix) = url.option("prefix", "a name such as dev")? {
            settings.prefix = Some(prefix);
        }
        settings.declare = url.declare()?;
        settings.wait = choice(&mut url, "connect", &[("once", false), ("wait", true)])?;
        if let Some(timeout) = url.duration("publish-timeout")? {
            settings.publish_timeout = timeout;
        }
        if let Some(max) = url.option("max-payload", "a number of bytes")? {
            settings.max_payload = max;
        }
        if let Some(partitions) = url.option("partitions", "a number from 1")? {
            settings.partitions = partitions;
        }
        settings.replication = url.option("replication", "a number of copies, such as 3")?;
        let protocols =
            [("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)];
        settings.protocol = choice(&mut url, "group-protocol", &protocols)?;
        if let Some(timeout) = url.duration("session-timeout")? {
            settings.session_timeout = timeout;
        }
        let mechanisms = [
            ("plain", Sasl::Plain),
            ("scram-sha-256", Sasl::ScramSha256),
            ("scram-sha-512", Sasl::ScramSha512),
        ];
        settings.sasl = choice(&mut url, "sasl", &mechanisms)?;
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

    /// Sets user and password for SASL.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.credentials = Some((user.into(), password.into()));
        self
    }

    /// Sets how user and password are shown; [`Sasl::Plain`] unless set.
    pub fn sasl(mut self, sasl: Sasl) -> Self {
        self.0.sasl = sasl;
        self
    }

    /// Puts `prefix` and a dot before every name that is not native, so that several environments
    /// can share a cluster.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = Some(prefix.into());
        self
    }

    /// Sets who creates topics and positions groups.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.0.declare = declare;
        self
    }

    /// Keeps trying until a broker answers, instead of failing at the first attempt.
    pub fn wait_for_broker(mut self) -> Self {
        self.0.wait = true;
        self
    }

    /// Sets how long a publish may take, waiting for a connection included; 30 s unless set.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout;
        self
    }

    /// Sets the topics' `max.message.bytes`; 1 MiB unless set, as Kafka does. Payloads may have
    /// 64 KiB less.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.0.max_payload = bytes;
        self
    }

    /// Sets how many partitions a topic is created with that does not state it itself; 4 unless
    /// set. At most so many processes of a group share its messages.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.0.partitions = partitions;
        self
    }

    /// Sets how many brokers keep a copy of a topic that is created; the broker's
    /// `default.replication.factor` unless set.
    pub fn replication(mut self, copies: u16) -> Self {
        self.0.replication = Some(copies);
        self
    }

    /// Sets how members of a group share partitions; [`GroupProtocol::Classic`] unless set.
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.0.protocol = protocol;
        self
    }

    /// Sets after how long without a sign of life a process has left its groups (classic groups
    /// only); 10 s unless set. The broker takes 6 s and more.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.0.session_timeout = timeout;
        self
    }

    /// Trusts the certificate authorities in this PEM file instead of the system's.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows this certificate to the broker; PEM files.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.0.identity = Some((cert.into(), key.into()));
        self
    }

    /// Authenticates by `OAUTHBEARER` with the tokens that this answers; it is asked again before
    /// one expires.
    ///
    /// The client library gives its administrative handle no token. So topics have to be there
    /// (the destination's, and `NAME--GROUP--retry` and `NAME--GROUP--dlq` of each group), and what
    /// would create one, or empty a dead-letter queue, answers
    /// [`Unsupported`](anybroker_core::ErrorKind::Unsupported).
    pub fn oauth_token<F>(mut self, token: F) -> Self
    where
        F: Fn() -> Result<OAuthToken, BoxError> + Send + Sync + 'static,
    {
        self.0.token = Some(Arc::new(token));
        self
    }

    /// Sets an option of librdkafka, over whatever this adapter sets. What it sets of
    /// acknowledgements, commits and offsets keeps messages from being lost: leave it.
    pub fn native_option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.native.insert(name.into(), value.into());
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `Config`, `Unavailable` or `Denied`, with what to write instead.
    pub async fn connect(self) -> Result<Arc<KafkaBroker>> {
        if let Some(prefix) = &self.0.prefix {
            Destination::queue(prefix.clone()).validate()?;
        }
        if self.0.partitions == 0 {
            return Err(config("option partitions is 0: write a number from 1"));
        }
        KafkaBroker::open(self.0).await
    }
}

impl fmt::Debug for KafkaBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBuilder")
            .field("hosts", &self.0.hosts)
            .field("prefix", &self.0.prefix)
            .field("declare", &self.0.declare)
            .finish_non_exhaustive()
    }
}

/// Takes an option out that is one of a few words, the first of which is the default.
fn choice<T: Copy>(url: &mut BrokerUrl, name: &str, choices: &[(&str, T)]) -> Result<T> {
    let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
    let expected = words.join(" or ");
    let Some(given) = url.option::<String>(name, &expected)? else { return Ok(choices[0].1) };
    let chosen = choices.iter().find(|(word, _)| *word == given);
    chosen
        .map(|(_, value)| *value)
        .ok_or_else(|| config(format!("option {name}={given} is not understood: write {expected}")))
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    error_of(ErrorKind::Config, "connect", text)
}
