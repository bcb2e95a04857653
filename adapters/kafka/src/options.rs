use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::adapter::{Options, Server, option_methods, server_methods};
use anybroker_core::{BoxError, BrokerUrl, Error, ErrorKind, Result};
use rdkafka::client::OAuthToken;

use crate::KafkaBroker;
use crate::error::error_of;
use crate::limits::MAX_PAYLOAD;

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
    pub(crate) server: Server,
    pub(crate) options: Options,
    pub(crate) partitions: u16,
    pub(crate) replication: Option<u16>,
    pub(crate) protocol: GroupProtocol,
    pub(crate) unreadable: UnreadableBatches,
    pub(crate) session_timeout: Duration,
    pub(crate) sasl: Sasl,
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
    /// default: for so long a killed consumer's messages wait. An older broker gives such a
    /// consumer nothing, without an error; a warning says so after 10 s.
    Consumer,
}

/// What becomes of a batch that the client cannot unpack: it is broken, or larger than
/// `receive.message.max.bytes` once it is unpacked. In both cases a line at ERROR names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnreadableBatches {
    /// Its partition stands before it until somebody sees to it, and nothing is lost.
    #[default]
    Stop,
    /// It is passed over: the group never handles its messages. A dead letter with the reason
    /// `unreadable` says where it is in the topic, for as long as that keeps it.
    Skip,
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
            server: Server::local(9092, MAX_PAYLOAD),
            options: Options::default(),
            partitions: 4,
            replication: None,
            protocol: GroupProtocol::Classic,
            unreadable: UnreadableBatches::Stop,
            session_timeout: Duration::from_secs(10),
            sasl: Sasl::Plain,
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
        settings.server.read(&mut url, &[("kafka", 9092)], &[("kafka+ssl", 9092)])?;
        settings.options.read(&mut url)?;
        if !url.path().is_empty() {
            return Err(config(format!(
                "Kafka has no databases or virtual hosts: drop {:?} behind the host",
                url.path()
            )));
        }
        if let Some(partitions) = url.option("partitions", "a number from 1")? {
            settings.partitions = partitions;
        }
        if let Some(copies) = url.option("replication", "a number of copies, such as 3")? {
            settings.replication = Some(copies);
        }
        let protocols =
            [("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)];
        if let Some(protocol) = url.choice("group-protocol", &protocols)? {
            settings.protocol = protocol;
        }
        let choices = [("stop", UnreadableBatches::Stop), ("skip", UnreadableBatches::Skip)];
        if let Some(unreadable) = url.choice("unreadable", &choices)? {
            settings.unreadable = unreadable;
        }
        if let Some(timeout) = url.duration("session-timeout")? {
            settings.session_timeout = timeout;
        }
        let mechanisms = [
            ("plain", Sasl::Plain),
            ("scram-sha-256", Sasl::ScramSha256),
            ("scram-sha-512", Sasl::ScramSha512),
        ];
        if let Some(sasl) = url.choice("sasl", &mechanisms)? {
            settings.sasl = sasl;
        }
        url.finish()?;
        Ok(self)
    }

    option_methods!("a dot", "a cluster");
    server_methods!(
        "Sets the topics' `max.message.bytes`; 1 MiB unless set, as Kafka does. Payloads may have 64 KiB less. Those that are created get it where it is more; to publish to one that takes less is a `Mismatch`.",
        "instead of the system's"
    );

    /// Sets how user and password are shown; [`Sasl::Plain`] unless set.
    pub fn sasl(mut self, sasl: Sasl) -> Self {
        self.0.sasl = sasl;
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

    /// Sets what becomes of batches that cannot be unpacked; [`UnreadableBatches::Stop`] unless set.
    pub fn unreadable(mut self, batches: UnreadableBatches) -> Self {
        self.0.unreadable = batches;
        self
    }

    /// Sets after how long without a sign of life a process has left its groups (classic groups
    /// only); 10 s unless set. The broker takes 6 s and more.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.0.session_timeout = timeout;
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
        self.0.options.validate()?;
        if self.0.partitions == 0 {
            return Err(config("option partitions is 0: write a number from 1"));
        }
        KafkaBroker::open(self.0).await
    }
}

impl fmt::Debug for KafkaBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBuilder")
            .field("server", &self.0.server)
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    error_of(ErrorKind::Config, "connect", text)
}
