//! The client's handles, and what they are told.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anybroker_core::{ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use crate::cluster::Cluster;
use crate::error::{code, error_of, failed};
use crate::handle::Brokers;
use crate::identity::{LOGGED, TopicIds};
use crate::isolation::is_of_a_record;
use crate::options::{GroupProtocol, Sasl, Settings};
use crate::tls::setting_up;
use crate::unreadable::Unreadable;

/// What every handle shares.
#[derive(Clone)]
pub(crate) struct Clients {
    common: ClientConfig,
    pub(crate) settings: Settings,
    pub(crate) cluster: Arc<Cluster>,
}

/// What the client calls back.
pub(crate) struct Context {
    cluster: Arc<Cluster>,
    /// Whether the client has been given its first token, or told that there is none.
    answered: AtomicBool,
    /// Why a record of a transaction was not stored: what is wrong with it, where anybody says so.
    refusal: Mutex<Option<KafkaError>>,
    pub(crate) ids: TopicIds,
    pub(crate) brokers: Brokers,
    /// The batch that could not be unpacked last.
    pub(crate) unreadable: Unreadable,
}

/// How long a handle waits for its first token, and how long at once.
const TOKEN_TIME: Duration = Duration::from_secs(5);
const TOKEN_STEP: Duration = Duration::from_millis(20);

/// Lets a handle say in its log what it learns of the cluster: its brokers, and the ids of topics.
pub(crate) const WITH_METADATA: (&str, &str) = ("debug", LOGGED);

impl Clients {
    pub(crate) fn new(settings: Settings) -> Self {
        let mut config = ClientConfig::new();
        let hosts: Vec<_> = settings
            .server
            .hosts
            .iter()
            .map(|(host, port)| {
                // An IPv6 address is made of colons itself.
                if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                }
            })
            .collect();
        config
            .set("bootstrap.servers", hosts.join(","))
            .set("client.id", "anybroker")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            .set("allow.auto.create.topics", "false")
            // Idle metadata must not age beyond what a new topic's consumer can wait for.
            .set("topic.metadata.refresh.interval.ms", "60000");
        let sasl = settings.server.user.is_some() || settings.token.is_some();
        config.set(
            "security.protocol",
            match (settings.server.tls, sasl) {
                (false, false) => "plaintext",
                (false, true) => "sasl_plaintext",
                (true, false) => "ssl",
                (true, true) => "sasl_ssl",
            },
        );
        if settings.token.is_some() {
            config.set("sasl.mechanisms", "OAUTHBEARER");
        } else if let Some(user) = &settings.server.user {
            let password = settings.server.password.as_deref().unwrap_or_default();
            let mechanism = match settings.sasl {
                Sasl::Plain => "PLAIN",
                Sasl::ScramSha256 => "SCRAM-SHA-256",
                Sasl::ScramSha512 => "SCRAM-SHA-512",
            };
            config
                .set("sasl.mechanisms", mechanism)
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        if let Some(ca) = &settings.server.ca {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        if let Some((certificate, key)) = &settings.server.identity {
            config
                .set("ssl.certificate.location", certificate.to_string_lossy())
                .set("ssl.key.location", key.to_string_lossy());
        }
        let cluster =
            Arc::new(Cluster::new(settings.token.clone(), settings.server.identity.is_some()));
        Self { common: config, settings, cluster }
    }

    pub(crate) fn context(&self) -> Context {
        Context {
            cluster: Arc::clone(&self.cluster),
            answered: AtomicBool::new(false),
            refusal: Mutex::default(),
            ids: TopicIds::default(),
            brokers: Brokers::default(),
            unreadable: Unreadable::default(),
        }
    }

    /// A handle of any kind: its own options over the common ones, the application's over both.
    pub(crate) fn create<C: ClientContext, T: FromClientConfigAndContext<C>>(
        &self,
        options: &[(&str, &str)],
        context: C,
        operation: &'static str,
    ) -> Result<T> {
        let mut config = self.common.clone();
        for (name, value) in options {
            config.set(*name, *value);
        }
        for (name, value) in &self.settings.native {
            config.set(name, value);
        }
        if options.contains(&WITH_METADATA) {
            let theirs = self.settings.native.get("debug");
            let debug = theirs.map_or(LOGGED.to_owned(), |theirs| format!("{LOGGED},{theirs}"));
            config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
        }
        config
            .create_with_context(context)
            .map_err(|error| failed(operation, &setting_up(&self.settings.server, &error), error))
    }

    /// A handle that belongs to no group, for questions and for reading topics.
    pub(crate) fn reader(&self, options: &[(&str, &str)]) -> Result<BaseConsumer<Context>> {
        // It is no member for whose life anybody waits; but the client compares this with
        // `max.poll.interval.ms`.
        let options = [&[("session.timeout.ms", "6000")], options].concat();
        let reader: BaseConsumer<Context> = self.create(&options, self.context(), "connect")?;
        // What it says before it has a token is of no interest.
        reader.context().give_token(|| drop(reader.poll(TOKEN_STEP)));
        Ok(reader)
    }

    /// A handle that writes in transactions.
    pub(crate) fn transactor(&self, options: &[(&str, &str)]) -> Result<BaseProducer<Context>> {
        let producer: BaseProducer<Context> = self.create(options, self.context(), "redrive")?;
        producer.context().give_token(|| producer.poll(TOKEN_STEP));
        Ok(producer)
    }

    /// A handle that reads and writes a group's position without being a member.
    pub(crate) fn observer(&self, group: &str) -> Result<BaseConsumer<Context>> {
        self.reader(&[("group.id", group), ("enable.auto.commit", "false")])
    }

    /// The options of a member of a group.
    pub(crate) fn member(&self, group: &str) -> Vec<(String, String)> {
        let session = self.settings.session_timeout.as_millis();
        let mut options = vec![
            ("group.id", group.to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            // An offset that is gone is an error: no policy may skip what was not handled.
            ("auto.offset.reset", "error".to_owned()),
            // More would only push one another out of the processor's caches; and to wait for long
            // before it fetches again would leave a fast consumer with nothing.
            ("queued.max.messages.kbytes", "8192".to_owned()),
            ("fetch.queue.backoff.ms", "2".to_owned()),
            ("fetch.error.backoff.ms", "100".to_owned()),
            (WITH_METADATA.0, WITH_METADATA.1.to_owned()),
        ];
        match self.settings.protocol {
            GroupProtocol::Classic => options.extend([
                ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
                ("session.timeout.ms", session.to_string()),
                ("heartbeat.interval.ms", (session / 4).clamp(1, 3000).to_string()),
            ]),
            GroupProtocol::Consumer => options.push(("group.protocol", "consumer".to_owned())),
        }
        options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The configuration of the handles, credentials included.
    pub(crate) fn config(&self) -> &ClientConfig {
        &self.common
    }
}

/// Waits for a first answer; blocks: for so long, or with `waiting` as long as anybody holds it.
///
/// # Errors
/// The first failure that the client reports, unless it is to wait.
pub(crate) fn check(
    reader: &BaseConsumer<Context>,
    time: Duration,
    waiting: Option<&Weak<()>>,
) -> Result<()> {
    /// Whatever topic: it is the answer that counts.
    const TOPIC: Option<&str> = Some("__consumer_offsets");
    const STEP: Duration = Duration::from_millis(250);
    const LOOK: Duration = Duration::from_millis(10);
    let end = Instant::now() + time;
    loop {
        // Whoever no longer waits would have the runtime wait for this when it ends.
        let wait = waiting.is_some_and(|waiting| waiting.strong_count() > 0);
        let cluster = &reader.context().cluster;
        let Err(error) = reader.fetch_metadata(TOPIC, STEP) else {
            cluster.is_there();
            return Ok(());
        };
        // With no time at all, a poll ends at the first line of the client's log.
        let reported = std::iter::from_fn(|| reader.poll(LOOK))
            .filter_map(Result::err)
            .find(|error| is_final(error, wait));
        if let Some(text) = cluster.refusal() {
            let text = format!("reaching the cluster: {text}");
            return Err(error_of(ErrorKind::Config, "connect", text).with_source(error));
        }
        let given_up = !wait && Instant::now() > end;
        if let Some(error) = reported.or_else(|| given_up.then_some(error)) {
            let hosts = "reaching the cluster";
            let said = cluster.failure();
            let what = if said.is_empty() { hosts.to_owned() } else { format!("{hosts}: {said}") };
            return Err(failed("connect", &what, error));
        }
        if wait {
            cluster.is_away("it does not answer");
        }
    }
}

fn is_final(error: &KafkaError, wait: bool) -> bool {
    match code(error) {
        Some(
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::UnsupportedSASLMechanism
            | RDKafkaErrorCode::SSL,
        ) => true,
        Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Resolve) => !wait,
        _ => false,
    }
}

impl Context {
    /// Polls until the client has its first token, which it asks for when it is polled, and waits
    /// for in all else.
    fn give_token(&self, poll: impl Fn()) {
        let end = Instant::now() + TOKEN_TIME;
        let waits = || self.cluster.has_tokens() && !self.answered.load(Ordering::SeqCst);
        while waits() && Instant::now() < end {
            poll();
        }
    }

    /// Why a record was not stored, if one was not since this was asked last.
    pub(crate) fn take_refusal(&self) -> Option<KafkaError> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.ids.note(text);
        self.brokers.note(text);
        self.cluster.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.unreadable.note(reason);
        self.cluster.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        let token = self.cluster.token();
        self.answered.store(true, Ordering::SeqCst);
        token
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    /// In a transaction its commit answers for all, but does not say why.
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
            // Those beside the record that is wrong are reported too: that they were not sent.
            if refusal.as_ref().is_none_or(|known| !is_of_a_record(known)) {
                *refusal = Some(error.clone());
            }
        }
    }
}
