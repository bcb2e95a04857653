use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::mem;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::idempotency_store::{Begin, Claim, IdempotencyStore, StoreFuture};
use crate::{Error, IdempotencyKey, Result};

/// Remembers handled messages in this process: for tests, for a single consumer, and where a
/// restart may repeat what was handled before it.
///
/// A claim is kept until it is settled or runs out, whatever the capacity. A handled message is
/// remembered for its ttl at least and twice that at most, unless the capacity is reached: then
/// the older half is forgotten first. It takes about 50 bytes a message, grows as it fills, and
/// keeps what it has grown to.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use anybroker_core::*;
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let store = MemoryIdempotencyStore::new().capacity(100_000);
/// let (key, lease, ttl) = (IdempotencyKey::new("email", "/shop", "7"), Duration::from_mins(1), Duration::from_hours(1));
///
/// let Begin::Fresh(claim) = store.begin(key, 1, lease).await? else { panic!("it is free") };
/// assert!(matches!(store.begin(key, 1, lease).await?, Begin::InFlight { .. }));
/// store.complete(claim, ttl).await?;
/// assert!(matches!(store.begin(key, 1, lease).await?, Begin::Done));
/// assert!(matches!(store.begin(key, 2, lease).await?, Begin::Mismatch));
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
pub struct MemoryIdempotencyStore {
    shards: Box<[Padded]>,
    /// Keys in one generation of one shard.
    generation: usize,
    warned: Once,
}

/// Enough that two threads seldom want the same one.
const SHARDS: usize = 64;

/// Two cache lines, which processors fetch in pairs: neighbours do not slow each other down.
#[repr(align(128))]
#[derive(Default)]
struct Padded(Mutex<Shard>);

#[derive(Default)]
struct Shard {
    /// Apart from what is done, so that nothing but its end or its lease removes a claim.
    claims: HashMap<Slot, Held, Prehashed>,
    /// What is done, in two generations: a key needs no expiry of its own, and forgetting a
    /// million keys is one step.
    current: Generation,
    previous: Generation,
    last_token: u64,
}

struct Held {
    token: u64,
    fingerprint: u64,
    until: Instant,
}

#[derive(Default)]
struct Generation {
    fingerprints: HashMap<Slot, u64, Prehashed>,
    /// When the last of its keys may be forgotten.
    until: Option<Instant>,
}

impl MemoryIdempotencyStore {
    /// Makes an empty store, for a million messages.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Padded::default()).collect();
        Self { shards, generation: 0, warned: Once::new() }.capacity(1_000_000)
    }

    /// Sets how many handled messages are remembered at most; a million unless set, rounded up to
    /// a multiple of 128. When it is reached, the newer half is kept.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.generation = capacity.div_ceil(2 * SHARDS).max(1);
        self
    }

    fn shard(&self, key: IdempotencyKey) -> MutexGuard<'_, Shard> {
        // The table takes its hash from the first word.
        let [_, word] = key.words();
        let index = usize::try_from(word % SHARDS as u64).unwrap_or_default();
        // No step in a lock panics half-way.
        self.shards[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn begin(&mut self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> Begin {
        let (now, slot) = (Instant::now(), Slot(key));
        if let Some(held) = self.claims.get(&slot)
            && held.until > now
        {
            return if held.fingerprint == fingerprint {
                Begin::InFlight { remaining: held.until - now }
            } else {
                Begin::Mismatch
            };
        }
        for generation in [&self.current, &self.previous] {
            if let Some(known) = generation.get(slot, now) {
                return if known == fingerprint { Begin::Done } else { Begin::Mismatch };
            }
        }
        self.last_token += 1;
        let token = self.last_token;
        self.claims.insert(slot, Held { token, fingerprint, until: end(now, lease) });
        Begin::Fresh(Claim::new(key, token))
    }

    fn renew(&mut self, claim: &Claim, lease: Duration) -> Result<()> {
        let now = Instant::now();
        let held = self.claims.get_mut(&Slot(claim.key()));
        match held.filter(|held| held.is(claim, now)) {
            Some(held) => {
                held.until = end(now, lease);
                Ok(())
            }
            None => Err(ran_out("renew")),
        }
    }

    /// Answers what was forgotten before its time.
    fn complete(&mut self, claim: &Claim, ttl: Duration, capacity: usize) -> Result<usize> {
        let (now, slot) = (Instant::now(), Slot(claim.key()));
        if !self.claims.get(&slot).is_some_and(|held| held.is(claim, now)) {
            return Err(ran_out("complete"));
        }
        let Some(held) = self.claims.remove(&slot) else { return Err(ran_out("complete")) };
        let full = self.current.fingerprints.len() >= capacity;
        let spent = self.previous.is_spent(now);
        let forgotten = if spent { 0 } else { self.previous.fingerprints.len() };
        if full || spent {
            mem::swap(&mut self.current, &mut self.previous);
            self.current.clear();
            // Whoever forgot its claim does not come to remove it.
            self.claims.retain(|_, held| held.until > now);
        }
        self.current.insert(slot, held.fingerprint, end(now, ttl));
        Ok(if full { forgotten } else { 0 })
    }

    fn abandon(&mut self, claim: &Claim) {
        let slot = Slot(claim.key());
        if self.claims.get(&slot).is_some_and(|held| held.token == claim.token()) {
            self.claims.remove(&slot);
        }
    }
}

impl Held {
    fn is(&self, claim: &Claim, now: Instant) -> bool {
        self.token == claim.token() && self.until > now
    }
}

impl Generation {
    fn get(&self, slot: Slot, now: Instant) -> Option<u64> {
        if self.is_spent(now) {
            return None;
        }
        self.fingerprints.get(&slot).copied()
    }

    fn insert(&mut self, slot: Slot, fingerprint: u64, until: Instant) {
        self.fingerprints.insert(slot, fingerprint);
        self.until = self.until.max(Some(until));
    }

    fn is_spent(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Keeps the table, which the next keys would only have to grow again.
    fn clear(&mut self) {
        self.fingerprints.clear();
        self.until = None;
    }
}

fn end(now: Instant, span: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(365 * 24);
    now + span.min(FAR)
}

fn ran_out(operation: &'static str) -> Error {
    Error::stale("the claim ran out before; another consumer may have handled the message")
        .operation(operation)
}

impl IdempotencyStore for MemoryIdempotencyStore {
    fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin> {
        StoreFuture::ready(Ok(self.shard(key).begin(key, fingerprint, lease)))
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        StoreFuture::ready(self.shard(claim.key()).renew(claim, lease))
    }

    fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()> {
        let completed = self.shard(claim.key()).complete(&claim, ttl, self.generation);
        StoreFuture::ready(completed.map(|forgotten| {
            if forgotten > 0 {
                self.warned.call_once(|| {
                    tracing::warn!(
                        store = ?self,
                        "the idempotency store is full and forgets messages before their ttl; \
                         raise its capacity or lower the ttl"
                    );
                });
            }
        }))
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        self.shard(claim.key()).abandon(&claim);
        StoreFuture::ready(Ok(()))
    }
}

impl Default for MemoryIdempotencyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryIdempotencyStore")
            .field("capacity", &(self.generation * 2 * SHARDS))
            .finish_non_exhaustive()
    }
}

/// A key as an entry of a table, which takes its hash as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot(IdempotencyKey);

type Prehashed = BuildHasherDefault<FirstWord>;

#[derive(Default)]
struct FirstWord(u64);

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [word, _] = self.0.words();
        state.write_u64(word);
    }
}

impl Hasher for FirstWord {
    fn write(&mut self, bytes: &[u8]) {
        // Only whole words come, through `write_u64`; anything else still counts.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_mins(1);
    const TTL: Duration = Duration::from_hours(1);

    fn key(id: usize) -> IdempotencyKey {
        IdempotencyKey::new("email", "/shop", &id.to_string())
    }

    async fn begin(store: &MemoryIdempotencyStore, id: usize) -> Begin {
        store.begin(key(id), 7, LEASE).await.unwrap()
    }

    async fn claim(store: &MemoryIdempotencyStore, id: usize) -> Claim {
        match begin(store, id).await {
            Begin::Fresh(claim) => claim,
            other => panic!("{id}: {other:?}"),
        }
    }

    async fn finish(store: &MemoryIdempotencyStore, id: usize) {
        let claim = claim(store, id).await;
        store.complete(claim, TTL).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn done_is_remembered_for_its_ttl_and_twice_that_at_most() {
        let store = MemoryIdempotencyStore::new();
        for id in 0..1000 {
            finish(&store, id).await;
            advance(TTL / 1000).await;
        }
        // Others come meanwhile, and make the generations turn.
        for id in 1000..3000 {
            let oldest = id - 999;
            assert!(matches!(begin(&store, oldest).await, Begin::Done), "{oldest} of {id}");
            finish(&store, id).await;
            advance(TTL / 1000).await;
        }
        advance(TTL).await;
        for id in 0..3000 {
            finish(&store, id).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn capacity_forgets_the_older_half_and_no_claim() {
        let store = MemoryIdempotencyStore::new().capacity(1280);
        let running = claim(&store, 1_000_000).await;
        for id in 0..100_000 {
            finish(&store, id).await;
        }
        let remembered = store
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.0.lock().unwrap();
                shard.current.fingerprints.len() + shard.previous.fingerprints.len()
            })
            .sum::<usize>();
        assert!((640..=1280).contains(&remembered), "{remembered}");
        assert!(matches!(begin(&store, 99_999).await, Begin::Done));
        assert!(matches!(begin(&store, 0).await, Begin::Fresh(_)));
        assert!(matches!(begin(&store, 1_000_000).await, Begin::InFlight { .. }));
        store.complete(running, TTL).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn claim_that_ran_out_settles_nothing() {
        let store = MemoryIdempotencyStore::new();
        let [stale, abandoned, untouched] =
            [claim(&store, 1).await, claim(&store, 2).await, claim(&store, 3).await];
        advance(LEASE).await;
        let next = [claim(&store, 1).await, claim(&store, 2).await];

        let error = store.renew(&stale, LEASE).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::StaleDelivery);
        let error = store.complete(stale, TTL).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::StaleDelivery);
        store.abandon(abandoned).await.unwrap();
        store.complete(untouched, TTL).await.unwrap_err();

        assert!(matches!(begin(&store, 1).await, Begin::InFlight { .. }));
        assert!(matches!(begin(&store, 2).await, Begin::InFlight { .. }));
        assert!(matches!(begin(&store, 3).await, Begin::Fresh(_)));
        for claim in next {
            store.complete(claim, TTL).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn claims_that_nobody_settled_are_removed_in_time() {
        let store = MemoryIdempotencyStore::new();
        for id in 0..10_000 {
            let _forgotten = claim(&store, id).await;
        }
        advance(TTL * 2).await;
        for id in 10_000..20_000 {
            finish(&store, id).await;
        }
        let claims: usize =
            store.shards.iter().map(|shard| shard.0.lock().unwrap().claims.len()).sum();
        assert_eq!(claims, 0);
    }

    #[tokio::test]
    async fn endless_times_are_taken() {
        let store = MemoryIdempotencyStore::new();
        let Begin::Fresh(claim) = store.begin(key(1), 7, Duration::MAX).await.unwrap() else {
            panic!("it is free")
        };
        store.renew(&claim, Duration::MAX).await.unwrap();
        store.complete(claim, Duration::MAX).await.unwrap();
        assert!(matches!(begin(&store, 1).await, Begin::Done));
    }
}
