use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Waker, ready};

use anybroker_macros::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::*;
use crate::handler::tests::{Count, count, message};
use crate::{Envelope, handler_fn};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "other", crate = crate)]
struct Other;

fn other() -> Message {
    message(Other.to_envelope().unwrap())
}

fn router() -> Router {
    Router::new()
        .route::<Count, _>(handler_fn(|count: Count, _| async move {
            Outcome::Retry { after: Duration::from_secs(count.0.into()) }
        }))
        .route::<Other, _>(handler_fn(|_: Other, _| async { Err::<(), _>("broken") }))
}

#[tokio::test]
async fn each_type_reaches_its_handler() {
    let mut router = router();
    let outcome = router.call(count(3)).await.unwrap();
    assert_eq!(outcome, Outcome::Retry { after: Duration::from_secs(3) });
    assert_eq!(router.call(other()).await.unwrap_err().to_string(), "broken");
    // The version is the handler's matter.
    let newer = Count(1).to_envelope().unwrap().with_version(2);
    assert!(router.call(message(newer)).await.is_err());
}

#[tokio::test]
async fn unknown_type_becomes_what_the_policy_says() {
    let unknown = || message(Envelope::new("unheard.of", "{}"));
    let Outcome::DeadLetter { reason } = router().call(unknown()).await.unwrap() else {
        panic!("it is dead-lettered by default")
    };
    assert_eq!(reason.code(), Reason::UNKNOWN_TYPE);
    assert_eq!(
        reason.error(),
        "no route takes the type `unheard.of`; there are routes for count, other"
    );
    let ack = router().unknown(Unknown::Ack).call(unknown()).await.unwrap();
    assert_eq!(ack, Outcome::Ack);
    let after = Duration::from_secs(9);
    let release = router().unknown(Unknown::Release { after }).call(unknown()).await.unwrap();
    assert_eq!(release, Outcome::Release { after });
    assert!(matches!(Router::new().call(unknown()).await, Ok(Outcome::DeadLetter { .. })));
}

/// It compiles: every layer that is ready-made hands on which message its handler takes.
#[tokio::test]
async fn a_route_knows_its_handler_under_ready_made_layers() {
    use tower::ServiceBuilder;

    let once = crate::IdempotencyLayer::new(crate::MemoryIdempotencyStore::new());
    let handler = ServiceBuilder::new()
        .layer(crate::DeadLetterLayer::new())
        .layer(&once)
        .layer(crate::RetryLayer::new(crate::Backoff::immediate()))
        .load_shed()
        .concurrency_limit(2)
        .map_err(|error: BoxError| error)
        .map_response(|outcome: Outcome| outcome)
        .layer(crate::TimeoutLayer::new(Duration::from_secs(1)))
        .option_layer(Some(crate::TimeoutLayer::new(Duration::from_secs(1))))
        .service(handler_fn(|_: Count, _| async {}));
    let mut router = Router::new().route::<Count, _>(handler);
    assert_eq!(router.call(count(1)).await.unwrap(), Outcome::Ack);
}

#[test]
#[should_panic(expected = "two routes take the type `other`; keep one")]
fn second_route_of_a_type_panics() {
    let _ = router().route::<Other, _>(handler_fn(|_: Other, _| async {}));
}

/// Ready once it has a permit, and angry when it is called without.
struct Limited {
    permits: Arc<Semaphore>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    ready: bool,
    calls: Arc<AtomicU32>,
}

impl Clone for Limited {
    fn clone(&self) -> Self {
        let (permits, calls) = (Arc::clone(&self.permits), Arc::clone(&self.calls));
        Self { permits, waiting: None, ready: false, calls }
    }
}

impl Service<Message> for Limited {
    type Response = Outcome;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Outcome, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let waiting = self.waiting.get_or_insert_with(|| {
            let permits = Arc::clone(&self.permits);
            Box::pin(async move { permits.acquire_owned().await.unwrap().forget() })
        });
        ready!(waiting.as_mut().poll(cx));
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Message) -> Self::Future {
        assert!(self.ready, "called without being ready");
        self.calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Outcome::Ack))
    }
}

#[tokio::test]
async fn route_that_is_not_ready_holds_up_itself_alone() {
    let (permits, calls) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
    let limited = Limited { permits: Arc::clone(&permits), waiting: None, ready: false, calls };
    let calls = Arc::clone(&limited.calls);
    let mut router = Router::new()
        .route_service::<Count, _>(limited)
        .route::<Other, _>(handler_fn(|_: Other, _| async {}));

    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(router.poll_ready(&mut cx), Poll::Ready(Ok(()))));
    let mut waiting = [router.call(count(1)), router.call(count(2))];
    for waiting in &mut waiting {
        assert!(Pin::new(waiting).poll(&mut cx).is_pending());
    }
    assert_eq!(router.clone().call(other()).await.unwrap(), Outcome::Ack);
    assert_eq!(calls.load(Ordering::Relaxed), 0);

    permits.add_permits(2);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Outcome::Ack);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}
