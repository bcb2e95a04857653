use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Envelope, Error, ErrorKind, Message, Outcome, Result, Subscription,
};
use tower::{Service, ServiceExt};

/// Runs a handler, with whatever layers it has, on one envelope, without a broker.
///
/// It is the first attempt, of the group `test` of the topic `test`.
///
/// # Errors
/// The service's own; the worker would retry or dead-letter it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), anybroker::BoxError> {
/// use anybroker::{Backoff, Envelope, Message, Outcome, RetryLayer, ServiceBuilder};
/// use anybroker_testkit::{handle, handle_attempt};
/// use std::time::Duration;
///
/// let handler = ServiceBuilder::new()
///     .layer(RetryLayer::new(Backoff::fixed(Duration::from_secs(7))).max_attempts(2))
///     .service_fn(|message: Message| async move {
///         if message.envelope().payload.is_empty() { Err("no payload") } else { Ok(Outcome::Ack) }
///     });
/// assert_eq!(handle(handler.clone(), Envelope::new("test", "{}")).await?, Outcome::Ack);
///
/// let empty = Envelope::new("test", "");
/// let outcome = handle(handler.clone(), empty.clone()).await?;
/// assert_eq!(outcome, Outcome::Retry { after: Duration::from_secs(7) });
/// assert!(handle_attempt(handler, empty, 2).await.is_err(), "the second attempt was the last");
/// # Ok(()) }
/// ```
pub async fn handle<S>(service: S, envelope: Envelope) -> Result<Outcome, BoxError>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>>,
{
    handle_attempt(service, envelope, 1).await
}

/// Runs a handler as [`handle`] does, on an attempt of this number, from 1.
///
/// # Errors
/// As [`handle`].
pub async fn handle_attempt<S>(
    service: S,
    envelope: Envelope,
    attempt: u32,
) -> Result<Outcome, BoxError>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>>,
{
    let subscription = Arc::new(Subscription::topic("test").group("test"));
    let message = Message::new(Arc::new(envelope), subscription, attempt);
    service.oneshot(message).await.map_err(Into::into)
}

/// Waits until the group has nothing left to handle: nothing ready, in flight or delayed.
///
/// # Errors
/// `Unsupported` where the broker does not count all three; else as [`Broker::depth`].
pub async fn until_handled(broker: &dyn Broker, subscription: &Subscription) -> Result<()> {
    loop {
        let depth = broker.depth(subscription).await?;
        let counts = [depth.ready, depth.in_flight, depth.delayed];
        if counts == [Some(0); 3] {
            return Ok(());
        }
        if counts.contains(&None) {
            let text = "the broker does not count what is ready, in flight and delayed";
            return Err(Error::new(ErrorKind::Unsupported, text).operation("until_handled"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
