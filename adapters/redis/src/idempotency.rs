use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Begin, BrokerUrl, Claim, Error, ErrorKind, IdempotencyKey, IdempotencyStore, Result,
    StoreFuture,
};
use redis::FromRedisValue;
use tokio::time::timeout;

use crate::error::{error_of, stale};
use crate::link::{Call, Link};
use crate::options::RedisBuilder;
use crate::scripts::{BEGIN, END};
use crate::settle::millis;

/// How long an answer may take: the message waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Remembers in Redis which messages were handled, for all processes and whatever broker they
/// consume from.
///
/// A claim and a handled message are a key each, about 150 bytes in the server's memory, that
/// expires with its lease or ttl by the server's clock. A server that forgets, since it was
/// restarted without persistence or evicts keys, lets messages be handled once more. It answers an
/// error where the server does not answer within 5 s.
///
/// ```no_run
/// # use anybroker_redis::RedisIdempotencyStore;
/// # async fn store() -> anybroker_core::Result<()> {
/// let store = RedisIdempotencyStore::connect("redis://localhost?prefix=shop".parse()?).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisIdempotencyStore {
    link: Arc<Link>,
    prefix: String,
}

impl RedisIdempotencyStore {
    /// Connects to the server of a URL; of its options, those count that concern connecting, and
    /// `prefix`.
    ///
    /// # Errors
    /// As [`RedisBuilder::connect`].
    pub async fn connect(url: BrokerUrl) -> Result<Self> {
        let settings = RedisBuilder::default().url(url)?.checked()?;
        let link = Arc::new(Link::new("idempotency", settings.clients()?.into()));
        settings.options.connect(|| link.get()).await?;
        tokio::spawn(Link::watch(Arc::downgrade(&link)));
        Ok(Self::on(link, settings.options.prefix.as_deref()))
    }

    pub(crate) fn on(link: Arc<Link>, prefix: Option<&str>) -> Self {
        let prefix = prefix.map_or_else(String::new, |prefix| format!("{prefix}--"));
        Self { link, prefix: format!("{prefix}idempotency--") }
    }

    /// Runs whether or not the answer is awaited.
    fn run<T, A>(
        &self,
        operation: &'static str,
        call: Call<'static>,
        meaning: impl FnOnce(A) -> Result<T> + Send + 'static,
    ) -> StoreFuture<T>
    where
        T: Send + 'static,
        A: FromRedisValue + Send + 'static,
    {
        let link = Arc::clone(&self.link);
        let running = tokio::spawn(async move {
            let answer = timeout(TIMEOUT, link.run(operation, &call)).await.map_err(|_| {
                let text = "the server did not answer within 5 s";
                error_of(ErrorKind::Timeout, operation, text)
            })?;
            meaning(answer?)
        });
        StoreFuture::run(async move {
            running.await.unwrap_or_else(|error| {
                Err(error_of(ErrorKind::Closed, operation, "the runtime ended").with_source(error))
            })
        })
    }

    fn end(&self, operation: &'static str, claim: &Claim, time: Duration) -> StoreFuture<bool> {
        let call = Call::new(&END)
            .key(&self.key(claim.key()))
            .arg(operation)
            .arg(claim.token())
            .arg(millis(time).max(1));
        self.run(operation, call, |ended: i64| Ok(ended == 1))
    }

    fn key(&self, key: IdempotencyKey) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl IdempotencyStore for RedisIdempotencyStore {
    fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin> {
        let token = fastrand::u64(..);
        let lease = millis(lease).max(1);
        let call = Call::new(&BEGIN).key(&self.key(key)).arg(token).arg(fingerprint).arg(lease);
        self.run("begin", call, move |(found, ms): (String, i64)| {
            Ok(match &*found {
                "fresh" => Begin::Fresh(Claim::new(key, token)),
                "done" => Begin::Done,
                "mismatch" => Begin::Mismatch,
                _ => Begin::InFlight {
                    remaining: Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
                },
            })
        })
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        let ended = self.end("renew", claim, lease);
        StoreFuture::run(async move { in_time("renew", ended.await?) })
    }

    fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()> {
        let ended = self.end("complete", &claim, ttl);
        StoreFuture::run(async move { in_time("complete", ended.await?) })
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        let ended = self.end("abandon", &claim, Duration::ZERO);
        StoreFuture::run(async move { ended.await.map(drop) })
    }
}

fn in_time(operation: &'static str, ended: bool) -> Result<()> {
    let ran_out = || -> Error {
        stale("the claim ran out before; another consumer may have handled the message")
            .operation(operation)
    };
    if ended { Ok(()) } else { Err(ran_out()) }
}

impl fmt::Debug for RedisIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisIdempotencyStore")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
