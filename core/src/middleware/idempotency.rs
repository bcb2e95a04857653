use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tower::{Layer, Service};

use super::idempotency_future::{Held, IdempotencyFuture};
use super::idempotency_key::fingerprint;
use super::idempotency_store::{Begin, IdempotencyStore, StoreFuture};
use crate::{BoxError, IdempotencyKey, Message, Outcome, Reason, Result};

/// Handles each message once: what was acknowledged before is acknowledged again, unseen.
///
/// | the message | answer |
/// |---|---|
/// | is new | the handler's; `Ack` completes the claim, anything else frees the key at once |
/// | is being handled elsewhere | `Release`, for as long as that claim lasts |
/// | was handled | `Ack`, counted in [`duplicates`](Self::duplicates) |
/// | has the key of another message with other content | `DeadLetter` with the reason [`idempotency-mismatch`](Reason::MISMATCH) |
/// | cannot be looked up, since the store fails | `Release`, for 5 s: without its store nothing is handled, and nothing is lost |
///
/// Put it outside the retry layer and inside the dead-letter layer: so a retry or a dead letter
/// leaves its key free for the next attempt or the redrive.
///
/// This makes duplicates rare, not impossible: a process that dies between the handler's effect
/// and the completion handles the message again once its claim has run out. The same follows when
/// the store fails to complete after the handler succeeded. The message is acknowledged
/// nevertheless, with a warning: its effect has happened, and not acknowledging it would make the
/// duplicate certain.
///
/// # Cancel safety
/// A future that is dropped, or whose handler panics, frees the key at once, after the handler's
/// future is gone. Dropped while a remote store is still asked, the claim it may get runs out with
/// its lease.
///
/// # Defaults
/// ttl 24 h; lease 1 min, renewed every third of it while the handler runs (a handler that blocks
/// its thread cannot be renewed: give it a lease as long as it blocks); key = group, source and id.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use anybroker_core::*;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let idempotency =
///     IdempotencyLayer::new(MemoryIdempotencyStore::new()).ttl(Duration::from_hours(24));
/// let handler = ServiceBuilder::new()
///     .layer(&idempotency)
///     .service(service_fn(|_: Message| async { Ok::<_, BoxError>(Outcome::Ack) }));
///
/// let envelope = Arc::new(Envelope::new("order.created", "{}"));
/// let subscription = Arc::new(Subscription::topic("order.created").group("email"));
/// let message = Message::new(envelope, subscription, 1);
/// assert_eq!(handler.clone().oneshot(message.clone()).await?, Outcome::Ack);
/// assert_eq!(handler.oneshot(message).await?, Outcome::Ack);
/// assert_eq!(idempotency.duplicates(), 1);
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct IdempotencyLayer {
    store: Arc<dyn IdempotencyStore>,
    ttl: Duration,
    lease: Duration,
    key: Option<fn(&Message) -> String>,
    duplicates: Arc<AtomicU64>,
}

/// The service of an [`IdempotencyLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    inner: S,
    /// Shared in one piece: a message costs one count of references.
    layer: Arc<IdempotencyLayer>,
}

/// How long a message waits for a store that failed.
const STORE_FAILED: Duration = Duration::from_secs(5);

/// A store that answers zero must not make a message spin.
const SHORTEST_RELEASE: Duration = Duration::from_millis(10);

/// A shorter lease would renew all the time.
const SHORTEST_LEASE: Duration = Duration::from_millis(30);

impl IdempotencyLayer {
    /// Remembers messages in this store; share one between layers as an `Arc`.
    pub fn new(store: impl IdempotencyStore + 'static) -> Self {
        Self {
            store: Arc::new(store),
            ttl: Duration::from_hours(24),
            lease: Duration::from_mins(1),
            key: None,
            duplicates: Arc::default(),
        }
    }

    /// Sets how long a handled message is remembered at least; 24 h unless set. Make it longer
    /// than a message can take to come back, redrives from a dead-letter queue included.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long a claim outlives its process; 1 min unless set, at least 30 ms.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(SHORTEST_LEASE);
        self
    }

    /// Remembers messages by a key of the application's own instead of their source and id. The
    /// group still counts: groups that share a store each handle the message.
    pub fn key(mut self, key: fn(&Message) -> String) -> Self {
        self.key = Some(key);
        self
    }

    /// How many messages were acknowledged unseen, by all clones of the layer and their services.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    fn begin(&self, message: &Message) -> StoreFuture<Begin> {
        let envelope = message.envelope();
        let key = match self.key {
            Some(key) => IdempotencyKey::custom(message.group(), &key(message)),
            None => IdempotencyKey::new(message.group(), &envelope.source, &envelope.id),
        };
        self.store.begin(key, fingerprint(&envelope.payload), self.lease)
    }

    /// The claim under which the handler runs, or the answer without it.
    pub(super) fn decide(
        self: &Arc<Self>,
        begun: Result<Begin>,
        message: &Message,
    ) -> Result<Held, Outcome> {
        let id = &message.envelope().id;
        match begun {
            Ok(Begin::Fresh(claim)) => Ok(Held::new(self.clone(), claim)),
            Ok(Begin::Done) => {
                self.duplicates.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(id, "a duplicate is acknowledged unseen");
                Err(Outcome::Ack)
            }
            Ok(Begin::InFlight { remaining }) => {
                tracing::debug!(id, ?remaining, "the message is being handled elsewhere");
                Err(Outcome::Release { after: remaining.max(SHORTEST_RELEASE) })
            }
            Ok(Begin::Mismatch) => Err(Outcome::dead_letter(
                Reason::MISMATCH,
                "another message with the same idempotency key has other content",
            )),
            Err(error) => {
                tracing::warn!(id, %error, "the idempotency store failed; the message waits");
                Err(Outcome::Release { after: STORE_FAILED })
            }
        }
    }

    pub(super) fn store(&self) -> &dyn IdempotencyStore {
        &*self.store
    }

    pub(super) fn ttl_time(&self) -> Duration {
        self.ttl
    }

    pub(super) fn lease_time(&self) -> Duration {
        self.lease
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, layer: Arc::new(self.clone()) }
    }
}

impl<S> Service<Message> for IdempotencyService<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>> + Clone,
{
    type Response = Outcome;
    type Error = BoxError;
    type Future = IdempotencyFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        match self.layer.begin(&message).now() {
            Ok(begun) => match self.layer.decide(begun, &message) {
                Ok(held) => IdempotencyFuture::run(self.inner.call(message), held),
                Err(outcome) => IdempotencyFuture::answer(outcome),
            },
            Err(beginning) => {
                // The service that was made ready goes along, its clone stays.
                let clone = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, clone);
                IdempotencyFuture::begin(beginning, self.layer.clone(), ready, message)
            }
        }
    }
}
