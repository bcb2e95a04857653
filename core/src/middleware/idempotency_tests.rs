use std::future::{Future, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::tests::message;
use crate::{
    Begin, BoxError, Claim, Error, ErrorKind, IdempotencyKey, IdempotencyLayer, IdempotencyStore,
    MemoryIdempotencyStore, Message, Outcome, Reason, Result, StoreFuture, permanent,
};

type Store = Arc<MemoryIdempotencyStore>;

const LEASE: Duration = Duration::from_mins(1);
const SECOND: Duration = Duration::from_secs(1);

fn layer(store: &Store) -> IdempotencyLayer {
    IdempotencyLayer::new(store.clone())
}

async fn handle<F>(
    layer: &IdempotencyLayer,
    message: Message,
    answer: impl FnMut(Message) -> F + Clone,
) -> Result<Outcome, BoxError>
where
    F: Future<Output = Result<Outcome, BoxError>>,
{
    layer.layer(service_fn(answer)).oneshot(message).await
}

fn ack(_: Message) -> impl Future<Output = Result<Outcome, BoxError>> {
    ready(Ok(Outcome::Ack))
}

fn never(_: Message) -> std::future::Pending<Result<Outcome, BoxError>> {
    panic!("the handler must not see the message")
}

/// Polls once, and says whether it answered.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn duplicate_is_acknowledged_unseen_and_counted() {
    let layer = layer(&Store::default());
    assert_eq!(handle(&layer, message("1", "a", 1), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(handle(&layer, message("1", "a", 2), never).await.unwrap(), Outcome::Ack);
    assert_eq!(handle(&layer, message("2", "a", 1), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 1);
}

#[tokio::test]
async fn other_content_under_the_same_key_is_dead_lettered() {
    let layer = layer(&Store::default());
    handle(&layer, message("1", "a", 1), ack).await.unwrap();
    let outcome = handle(&layer, message("1", "b", 1), never).await.unwrap();
    let Outcome::DeadLetter { reason } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason.code(), Reason::MISMATCH);
    assert_eq!(layer.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn second_consumer_releases_while_the_first_handles() {
    let layer = layer(&Store::default());
    let done = Arc::new(Notify::new());
    let wait = done.clone();
    let mut first = pin!(handle(&layer, message("1", "a", 1), move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Ok(Outcome::Ack)
        }
    }));
    assert!(poll_once(first.as_mut()).is_pending());

    advance(SECOND).await;
    let second = handle(&layer, message("1", "a", 1), never).await.unwrap();
    assert_eq!(second, Outcome::Release { after: SECOND * 59 });
    let other = handle(&layer, message("1", "b", 1), never).await.unwrap();
    assert!(matches!(other, Outcome::DeadLetter { .. }));

    done.notify_one();
    assert_eq!(first.await.unwrap(), Outcome::Ack);
    assert_eq!(handle(&layer, message("1", "a", 2), never).await.unwrap(), Outcome::Ack);
}

#[tokio::test]
async fn anything_but_ack_frees_the_key() {
    let layer = layer(&Store::default());
    for outcome in [
        Outcome::Retry { after: SECOND },
        Outcome::Release { after: SECOND },
        Outcome::dead_letter("closed", "the shop is closed"),
    ] {
        let answer = |_| ready(Ok(outcome.clone()));
        assert_eq!(handle(&layer, message("1", "a", 1), answer).await.unwrap(), outcome);
    }
    let fail = |_| ready(Err(permanent("bad order")));
    let error = handle(&layer, message("1", "a", 1), fail).await.unwrap_err();
    assert_eq!(error.to_string(), "bad order");
    assert_eq!(handle(&layer, message("1", "a", 1), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0, "each was handled");
}

#[tokio::test]
async fn dropped_future_frees_the_key_at_once() {
    let layer = layer(&Store::default());
    let mut service = layer.layer(service_fn(|_: Message| pending::<Result<Outcome, BoxError>>()));

    let unpolled = service.ready().await.unwrap().call(message("1", "a", 1));
    drop(unpolled);
    {
        let mut polled = pin!(service.ready().await.unwrap().call(message("1", "a", 1)));
        assert!(poll_once(polled.as_mut()).is_pending());
    }
    assert_eq!(handle(&layer, message("1", "a", 2), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0);
}

#[tokio::test]
async fn panic_frees_the_key_at_once() {
    let layer = layer(&Store::default());
    let panics = |_: Message| async { panic!("a bug") };
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ = poll_once(pin!(handle(&layer, message("1", "a", 1), panics)));
    }));
    assert!(panicked.is_err());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ = poll_once(pin!(handle(&layer, message("1", "a", 1), never)));
    }));
    assert!(panicked.is_err(), "in the call as well");
    assert_eq!(handle(&layer, message("1", "a", 2), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_dead_process_runs_out() {
    let layer = layer(&Store::default());
    let mut service = layer.layer(service_fn(|_: Message| pending::<Result<Outcome, BoxError>>()));
    let mut dead = Box::pin(service.ready().await.unwrap().call(message("1", "a", 1)));
    assert!(poll_once(dead.as_mut()).is_pending());
    // Nothing of a killed process runs any more, not even a drop.
    std::mem::forget(dead);

    advance(SECOND * 59).await;
    let early = handle(&layer, message("1", "a", 2), never).await.unwrap();
    assert_eq!(early, Outcome::Release { after: SECOND });
    advance(SECOND).await;
    assert_eq!(handle(&layer, message("1", "a", 2), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_long_handler_is_renewed() {
    let layer = layer(&Store::default());
    let long = layer.layer(service_fn(|_: Message| async {
        sleep(LEASE * 10).await;
        Ok::<_, BoxError>(Outcome::Ack)
    }));
    let running = tokio::spawn(long.oneshot(message("1", "a", 1)));
    for _ in 0..9 {
        sleep(LEASE).await;
        let second = handle(&layer, message("1", "a", 1), never).await.unwrap();
        let Outcome::Release { after } = second else { panic!("{second:?}") };
        assert!(after >= LEASE / 2, "{after:?}");
    }
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ack);
    assert_eq!(handle(&layer, message("1", "a", 1), never).await.unwrap(), Outcome::Ack);
}

#[tokio::test(start_paused = true)]
async fn handler_whose_claim_ran_out_completes_nothing() {
    let store = Store::default();
    let layer = layer(&store);
    let done = Arc::new(Notify::new());
    let wait = done.clone();
    let mut stalled = pin!(handle(&layer, message("1", "a", 1), move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Ok(Outcome::Ack)
        }
    }));
    assert!(poll_once(stalled.as_mut()).is_pending());
    // Its thread was blocked: it could not be polled to renew.
    advance(LEASE).await;
    let mut second =
        pin!(handle(&layer, message("1", "a", 2), |_| pending::<Result<Outcome, BoxError>>()));
    assert!(poll_once(second.as_mut()).is_pending(), "the claim is taken over");

    assert!(poll_once(stalled.as_mut()).is_pending(), "its renewal is refused");
    done.notify_one();
    assert_eq!(stalled.await.unwrap(), Outcome::Ack, "its effect has happened");
    let third = handle(&layer, message("1", "a", 3), never).await.unwrap();
    assert!(matches!(third, Outcome::Release { .. }), "the second claim stands: {third:?}");
}

#[tokio::test]
async fn groups_sources_and_own_keys_are_told_apart() {
    let store = Store::default();
    let (ids, customers) =
        (layer(&store), layer(&store).key(|message| message.envelope().key.clone().unwrap()));
    let with = |source: &'static str, key: &str, group: &'static str| {
        let envelope = crate::Envelope::new("order.created", "a")
            .with_id("1")
            .with_source(source)
            .with_key(key);
        let subscription = crate::Subscription::topic("order.created").group(group);
        Message::new(Arc::new(envelope), Arc::new(subscription), 1)
    };
    for message in [with("/a", "k", "email"), with("/b", "k", "email"), with("/a", "k", "billing")]
    {
        handle(&ids, message, ack).await.unwrap();
    }
    assert_eq!(ids.duplicates(), 0);
    handle(&customers, with("/a", "k", "email"), ack).await.unwrap();
    handle(&customers, with("/a", "k2", "email"), ack).await.unwrap();
    handle(&customers, with("/a", "k", "billing"), ack).await.unwrap();
    assert_eq!(customers.duplicates(), 0);
    handle(&customers, with("/b", "k", "email"), never).await.unwrap();
    assert_eq!(customers.duplicates(), 1);
}

/// A store elsewhere: what it does, it does at once, and answers a second later; or not at all.
#[derive(Debug, Default)]
struct Remote {
    memory: MemoryIdempotencyStore,
    begin_fails: AtomicBool,
    complete_fails: AtomicBool,
    renewals_to_fail: AtomicU32,
}

fn later<T: Send + 'static>(
    fails: bool,
    operation: impl FnOnce() -> StoreFuture<T>,
) -> StoreFuture<T> {
    let answer = if fails {
        StoreFuture::ready(Err(Error::new(ErrorKind::Unavailable, "no connection")))
    } else {
        operation()
    };
    StoreFuture::run(async move {
        sleep(SECOND).await;
        answer.await
    })
}

impl IdempotencyStore for Remote {
    fn begin(&self, key: IdempotencyKey, fingerprint: u64, lease: Duration) -> StoreFuture<Begin> {
        let fails = self.begin_fails.load(Ordering::Relaxed);
        later(fails, || self.memory.begin(key, fingerprint, lease))
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        let fails = self.renewals_to_fail.load(Ordering::Relaxed);
        self.renewals_to_fail.store(fails.saturating_sub(1), Ordering::Relaxed);
        later(fails > 0, || self.memory.renew(claim, lease))
    }

    fn complete(&self, claim: Claim, ttl: Duration) -> StoreFuture<()> {
        let fails = self.complete_fails.load(Ordering::Relaxed);
        later(fails, || self.memory.complete(claim, ttl))
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        later(false, || self.memory.abandon(claim))
    }
}

#[tokio::test(start_paused = true)]
async fn store_elsewhere_does_the_same() {
    let layer = IdempotencyLayer::new(Remote::default());
    let retry = Outcome::Retry { after: SECOND };
    let answer = |_| ready(Ok(retry.clone()));
    assert_eq!(handle(&layer, message("1", "a", 1), answer).await.unwrap(), retry);
    {
        let mut dropped =
            pin!(handle(&layer, message("1", "a", 2), |_| pending::<Result<Outcome, BoxError>>()));
        let timeout = tokio::time::timeout(SECOND * 5, dropped.as_mut()).await;
        assert!(timeout.is_err());
    }
    assert_eq!(handle(&layer, message("1", "a", 3), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0);
    assert_eq!(handle(&layer, message("1", "a", 4), never).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 1);
}

#[tokio::test(start_paused = true)]
async fn message_waits_while_the_store_fails() {
    let store = Arc::new(Remote::default());
    let layer = IdempotencyLayer::new(store.clone());
    store.begin_fails.store(true, Ordering::Relaxed);
    let outcome = handle(&layer, message("1", "a", 1), never).await.unwrap();
    assert_eq!(outcome, Outcome::Release { after: SECOND * 5 });
    store.begin_fails.store(false, Ordering::Relaxed);
    assert_eq!(handle(&layer, message("1", "a", 1), ack).await.unwrap(), Outcome::Ack);
    assert_eq!(layer.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn success_is_acknowledged_though_the_store_fails_to_complete() {
    let store = Arc::new(Remote::default());
    let layer = IdempotencyLayer::new(store.clone());
    store.complete_fails.store(true, Ordering::Relaxed);
    assert_eq!(handle(&layer, message("1", "a", 1), ack).await.unwrap(), Outcome::Ack);
}

#[tokio::test(start_paused = true)]
async fn renewal_is_tried_again_after_a_failure() {
    let store = Arc::new(Remote::default());
    let layer = IdempotencyLayer::new(store.clone());
    store.renewals_to_fail.store(1, Ordering::Relaxed);
    let long = |_| async {
        sleep(LEASE * 3).await;
        Ok(Outcome::Ack)
    };
    assert_eq!(handle(&layer, message("1", "a", 1), long).await.unwrap(), Outcome::Ack);
    assert_eq!(store.renewals_to_fail.load(Ordering::Relaxed), 0);
    assert_eq!(handle(&layer, message("1", "a", 1), never).await.unwrap(), Outcome::Ack);
}
