//! Whole stacks, driven by hand, and what the layers' own tests share.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    Backoff, BoxError, DeadLetterLayer, Envelope, Error, ErrorKind, IdempotencyLayer, Jitter,
    MemoryIdempotencyStore, Message, Outcome, RetryLayer, Subscription, TimeoutLayer, permanent,
};

pub(super) fn message(id: &str, payload: &'static str, attempt: u32) -> Message {
    let envelope = Envelope::new("order.created", payload).with_id(id);
    let subscription = Subscription::topic("order.created").group("email");
    Message::new(Arc::new(envelope), Arc::new(subscription), attempt)
}

const fn retry(seconds: u64) -> Outcome {
    Outcome::Retry { after: Duration::from_secs(seconds) }
}

/// An error of somebody else's layer around ours.
#[derive(Debug)]
struct Foreign(BoxError);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the audit layer saw a failure")
    }
}

impl StdError for Foreign {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// Hands each payload's wish to the handler, through foreign layers on every level.
fn stack(
    store: Arc<MemoryIdempotencyStore>,
    runs: Arc<AtomicU32>,
) -> impl Service<Message, Response = Outcome, Error = BoxError, Future: Send> + Clone {
    ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(ConcurrencyLimitLayer::new(8))
        .map_err(|error: BoxError| Foreign(error))
        .layer(IdempotencyLayer::new(store).ttl(Duration::from_hours(24)))
        .map_err(|error: BoxError| Foreign(error))
        .layer(
            RetryLayer::new(
                Backoff::exponential(Duration::from_secs(1))
                    .cap(Duration::from_mins(1))
                    .jitter(Jitter::None),
            )
            .max_attempts(3),
        )
        .layer(LoadShedLayer::new())
        .map_err(|error: BoxError| Foreign(error))
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .service(service_fn(move |message: Message| {
            runs.fetch_add(1, Ordering::Relaxed);
            async move {
                match &*message.envelope().payload {
                    b"ok" => Ok(Outcome::Ack),
                    b"hang" => std::future::pending().await,
                    b"permanent" => Err(permanent("bad order")),
                    b"undecodable" => Err(Error::new(ErrorKind::Undecodable, "no order")
                        .with_source("expected a number")
                        .into()),
                    _ => Err::<Outcome, BoxError>("no answer".into()),
                }
            }
        }))
}

#[tokio::test(start_paused = true)]
async fn class_and_source_survive_foreign_layers() {
    let handler = stack(Arc::default(), Arc::default());
    for (payload, attempt, code, end) in [
        ("permanent", 1, "permanent", "bad order"),
        ("undecodable", 1, "undecodable", "no order: expected a number"),
        ("fails", 3, "exhausted", "no answer"),
        ("hang", 3, "exhausted", "request timed out"),
    ] {
        let outcome = handler.clone().oneshot(message(payload, payload, attempt)).await.unwrap();
        let Outcome::DeadLetter { reason } = outcome else { panic!("{payload}: {outcome:?}") };
        assert_eq!(reason.code(), code, "{payload}");
        assert!(reason.error().ends_with(end), "{payload}: {}", reason.error());
        assert!(reason.error().starts_with("the audit layer"), "{payload}: {}", reason.error());
    }
}

#[tokio::test(start_paused = true)]
async fn message_goes_through_the_whole_stack() {
    let runs = Arc::new(AtomicU32::new(0));
    let handler = stack(Arc::default(), runs.clone());
    let handle = |payload, attempt| handler.clone().oneshot(message("1", payload, attempt));

    assert_eq!(handle("fails", 1).await.unwrap(), retry(1));
    assert_eq!(handle("hang", 2).await.unwrap(), retry(2), "a timeout has no class: transient");
    assert!(matches!(handle("fails", 3).await.unwrap(), Outcome::DeadLetter { .. }));
    assert_eq!(handle("ok", 1).await.unwrap(), Outcome::Ack, "sent back from the dead letters");
    assert_eq!(runs.load(Ordering::Relaxed), 4);
    assert_eq!(handle("ok", 2).await.unwrap(), Outcome::Ack);
    assert_eq!(runs.load(Ordering::Relaxed), 4, "a duplicate is not handled");
}

#[tokio::test]
async fn a_limit_releases_a_message_wherever_it_stands() {
    let limited = || {
        ServiceBuilder::new()
            .layer(LoadShedLayer::new())
            .layer(ConcurrencyLimitLayer::new(0))
            .service(service_fn(|_: Message| async { Ok::<_, BoxError>(Outcome::Ack) }))
    };
    let retry = || RetryLayer::new(Backoff::fixed(Duration::from_secs(3)));
    let message = || message("1", "ok", 5);
    for outcome in [
        retry().layer(limited()).oneshot(message()).await,
        DeadLetterLayer::new().layer(limited()).oneshot(message()).await,
        DeadLetterLayer::new().layer(retry().layer(limited())).oneshot(message()).await,
        DeadLetterLayer::new()
            .layer(
                ServiceBuilder::new()
                    .layer(LoadShedLayer::new())
                    .layer(ConcurrencyLimitLayer::new(0))
                    .service(retry().layer(limited())),
            )
            .oneshot(message())
            .await,
        ServiceBuilder::new()
            .layer(retry())
            .map_err(|error: BoxError| Foreign(error))
            .service(limited())
            .oneshot(message())
            .await,
    ] {
        assert!(matches!(outcome, Ok(Outcome::Release { .. })), "{outcome:?}");
    }
}
