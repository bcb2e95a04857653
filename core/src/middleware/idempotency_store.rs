use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::{IdempotencyKey, Result};

/// Remembers which messages were handled, and which are being handled.
///
/// A key is free, claimed for a time (its lease), or done. [`begin`](Self::begin) claims a free key
/// for exactly one caller. The [`Claim`] is a fence: once its lease ran out it renews, completes and
/// abandons nothing, whether or not somebody else has claimed the key since. So no two callers
/// both complete, and a process that dies frees what it had claimed.
///
/// # Cancel safety
/// An operation runs whether or not its future is polled, as far as the store can be reached;
/// dropping the future only gives up the answer. The layer relies on it where it abandons a claim
/// while being dropped.
///
/// # Errors
/// When the store cannot be reached or does not answer in time. Set a deadline: the message waits
/// for the answer.
///
/// ```
/// # use std::time::Duration;
/// # use anybroker_core::*;
/// /// Stands for a store elsewhere: it answers later.
/// #[derive(Debug)]
/// struct Elsewhere(MemoryIdempotencyStore);
///
/// impl IdempotencyStore for Elsewhere {
///     fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin> {
///         let begin = self.0.begin(key, fingerprint, lease);
///         StoreFuture::run(async move {
///             tokio::task::yield_now().await;
///             begin.await
///         })
///     }
///     fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
///         self.0.renew(claim, lease)
///     }
///     fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()> {
///         self.0.complete(claim, ttl)
///     }
///     fn abandon(&self, claim: Claim) -> StoreFuture<()> {
///         self.0.abandon(claim)
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let store = Elsewhere(MemoryIdempotencyStore::new());
/// let (key, lease) = (IdempotencyKey::new("email", "/shop", "7"), Duration::from_mins(1));
/// let Begin::Fresh(claim) = store.begin(key, 1, lease).await? else { panic!("it is free") };
/// store.abandon(claim).await?;
/// assert!(matches!(store.begin(key, 1, lease).await?, Begin::Fresh(_)));
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
pub trait IdempotencyStore: Send + Sync + fmt::Debug {
    /// Claims the key for the length of `lease`, if it is free.
    fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin>;

    /// Extends a claim to `lease` from now.
    ///
    /// # Errors
    /// [`StaleDelivery`](crate::ErrorKind::StaleDelivery) when the claim ran out.
    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()>;

    /// Remembers the key as done, for `ttl` at least.
    ///
    /// # Errors
    /// [`StaleDelivery`](crate::ErrorKind::StaleDelivery) when the claim ran out.
    fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()>;

    /// Frees the key at once. A claim that ran out frees nothing, which is no error.
    fn abandon(&self, claim: Claim) -> StoreFuture<()>;
}

/// What a store answers to [`IdempotencyStore::begin`].
#[derive(Debug)]
pub enum Begin {
    /// The key was free and is claimed now: handle the message.
    Fresh(Claim),
    /// Another claim holds the key.
    InFlight {
        /// How long it lasts unless it is renewed or ends earlier.
        remaining: Duration,
    },
    /// The key is done: do not handle the message again.
    Done,
    /// The key is claimed or done with another fingerprint: another message has the same id.
    Mismatch,
}

/// The right to handle a message, until its lease runs out.
#[derive(Debug)]
pub struct Claim {
    key: IdempotencyKey,
    token: u64,
}

impl Claim {
    /// Makes a claim; stores call it. No two claims of one key have the same token.
    pub fn new(key: IdempotencyKey, token: u64) -> Self {
        Self { key, token }
    }

    /// What is claimed.
    pub fn key(&self) -> IdempotencyKey {
        self.key
    }

    /// What tells this claim from earlier and later ones of its key.
    pub fn token(&self) -> u64 {
        self.token
    }
}

/// Resolves to what a store answers: ready at once from memory, boxed where it must wait.
#[must_use = "the store's answer is only known when this is awaited"]
pub struct StoreFuture<T>(State<T>);

enum State<T> {
    Ready(Option<Result<T>>),
    Running(Pin<Box<dyn Future<Output = Result<T>> + Send>>),
}

impl<T> StoreFuture<T> {
    /// An answer that is there already.
    pub fn ready(answer: Result<T>) -> Self {
        Self(State::Ready(Some(answer)))
    }

    /// An answer that comes from a future.
    pub fn run(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(State::Running(Box::pin(future)))
    }

    /// The answer if it is there already.
    pub(super) fn now(self) -> Result<Result<T>, Self> {
        match self.0 {
            State::Ready(Some(answer)) => Ok(answer),
            state => Err(Self(state)),
        }
    }
}

// Nothing in it is pinned in place: a running future is boxed.
impl<T> Unpin for StoreFuture<T> {}

impl<T> Future for StoreFuture<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Like any future, it is not polled again once it has answered.
            State::Ready(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            State::Running(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.0 {
            State::Ready(_) => "ready",
            State::Running(_) => "running",
        };
        f.debug_tuple("StoreFuture").field(&state).finish()
    }
}

impl<S: IdempotencyStore + ?Sized> IdempotencyStore for Arc<S> {
    fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin> {
        (**self).begin(key, fingerprint, lease)
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        (**self).renew(claim, lease)
    }

    fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()> {
        (**self).complete(claim, ttl)
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        (**self).abandon(claim)
    }
}
