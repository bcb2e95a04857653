//! What the client's handles report of the cluster, and the tokens that they ask for.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anybroker_core::ErrorKind;
use anybroker_core::adapter::Outage;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::KafkaBroker;
use crate::error::{code, error_of};
use crate::options::TokenProvider;
use crate::tls;

/// How often a cluster that may be away is asked, and for how long.
const LOOK: Duration = Duration::from_secs(1);

/// Shared by all handles of a broker.
pub(crate) struct Cluster {
    token: Option<TokenProvider>,
    /// Whether this client has a certificate to show.
    has_certificate: bool,
    /// What failed last, which the client's error codes do not tell.
    failure: Mutex<String>,
    /// Whether a handle reports that it reaches no broker. A handle that was idle reports so too,
    /// when the last of its connections was closed: the cluster is asked before anybody is told.
    suspected: AtomicBool,
    outage: Outage,
    /// Whether nobody waits for an answer any more.
    ended: AtomicBool,
}

impl Cluster {
    pub(crate) fn new(token: Option<TokenProvider>, has_certificate: bool) -> Self {
        let (failure, suspected) = (Mutex::default(), AtomicBool::new(false));
        let (outage, ended) = (Outage::new("cluster"), AtomicBool::new(false));
        Self { token, has_certificate, failure, suspected, outage, ended }
    }

    /// Has no question asked again: the runtime ends only when the last of them has.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn failure(&self) -> String {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why one side did not accept the other's certificate, and what to do, where that failed last.
    pub(crate) fn refusal(&self) -> Option<String> {
        let failure = self.failure();
        let advice = tls::refusal(&failure, self.has_certificate)?;
        Some(format!("{failure}; {advice}"))
    }

    fn note(&self, text: &str) {
        // "[thrd:…]: host:port/bootstrap: what failed (after 0ms in state CONNECT)"
        let text = text.rsplit_once("]: ").map_or(text, |(_, text)| text);
        let text = text.split(" (after ").next().unwrap_or(text);
        text.clone_into(&mut self.failure.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A line of a handle's own log. It reports every lost connection there, which it mends itself.
    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if matches!(facility, "FAIL" | "ERROR") {
            self.note(text);
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(facility, "{text}");
            }
            RDKafkaLogLevel::Debug => tracing::trace!(facility, "{text}"),
            _ => tracing::debug!(facility, "{text}"),
        }
    }

    /// An error that is no message's.
    pub(crate) fn error(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the Kafka client reports an error");
        if matches!(
            code(error),
            Some(
                RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::SSL
            )
        ) {
            self.suspect();
        }
    }

    /// Has the cluster asked whether it is there.
    pub(crate) fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Notes that it did not answer; `reason` is said where the client's log names none.
    pub(crate) fn is_away(&self, reason: &str) {
        let failure = Some(self.failure()).filter(|failure| !failure.is_empty());
        self.outage.goes_on(failure.as_deref().unwrap_or(reason));
    }

    /// Notes that it has answered.
    pub(crate) fn is_there(&self) {
        self.suspected.store(false, Ordering::Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.outage.ends();
    }

    /// Why it does not answer, and for how long, when it does not.
    pub(crate) fn outage(&self) -> Option<String> {
        self.outage.cause()
    }

    pub(crate) fn has_tokens(&self) -> bool {
        self.token.is_some()
    }

    pub(crate) fn token(&self) -> Result<OAuthToken, Box<dyn StdError>> {
        let token = match &self.token {
            Some(token) => token().map_err(|error| error as Box<dyn StdError>),
            None => Err(error_of(ErrorKind::Config, "connect", "no source of OAuth tokens").into()),
        };
        if let Err(error) = &token {
            self.note(&format!("no token: {error}"));
        }
        token
    }
}

/// Asks a cluster that may be away until it answers, since the client does not say that it is back.
pub(crate) async fn watch(broker: Weak<KafkaBroker>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(broker) = broker.upgrade().filter(|broker| !broker.is_closed()) else { return };
        let cluster = Arc::clone(broker.cluster());
        if (cluster.suspected.load(Ordering::Relaxed) || cluster.outage().is_some())
            && let Err(error) = broker.answers(LOOK).await
            && !broker.is_closed()
        {
            cluster.is_away(&error.to_string());
        }
    }
}
