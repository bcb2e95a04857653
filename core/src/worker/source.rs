use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::policy;
use crate::{
    Broker, Capabilities, Consumer, Delivery, ErrorKind, Result, RetryClass, Settler, Subscription,
};

/// Where a shard's deliveries come from: a consumer, and another one when that has ended.
pub(super) struct Source {
    broker: Arc<dyn Broker>,
    subscription: Arc<Subscription>,
    prefetch: usize,
    state: State,
    failures: u32,
}

enum State {
    Consuming(Box<dyn Consumer>),
    Replacing(Replacing),
}

type Replacing = Pin<Box<dyn Future<Output = Result<Box<dyn Consumer>>> + Send>>;

type Closing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What a poll of a [`Source`] has brought.
pub(super) enum Received {
    Deliveries,
    /// The consumer ended, and what it handed out went with it; another one is being opened.
    Ended,
    /// Another consumer was opened.
    Opened(Lease),
}

/// Who renews, and what; see [`Consumer::lease`].
pub(super) type Lease = Option<(Arc<dyn Settler>, Duration)>;

impl Source {
    pub(super) async fn open(
        broker: Arc<dyn Broker>,
        subscription: Arc<Subscription>,
        prefetch: usize,
    ) -> Result<Self> {
        let consumer = broker.consume(&subscription, prefetch).await?;
        Ok(Self { broker, subscription, prefetch, state: State::Consuming(consumer), failures: 0 })
    }

    pub(super) fn lease(&self) -> Lease {
        match &self.state {
            State::Consuming(consumer) => consumer.lease(),
            State::Replacing(_) => None,
        }
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        self.broker.capabilities()
    }

    /// Receives up to `max` deliveries, and stops waiting for them where that is 0.
    ///
    /// # Errors
    /// Transient errors, after which to pause and poll again; `Closed` when the broker was closed.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<Received>> {
        match &mut self.state {
            State::Consuming(consumer) => match ready!(consumer.poll_receive(cx, max, out)) {
                Ok(()) => {
                    self.failures = 0;
                    Poll::Ready(Ok(Received::Deliveries))
                }
                Err(error) if error.retry_class() != RetryClass::Permanent => {
                    Poll::Ready(Err(error))
                }
                Err(error) => {
                    tracing::warn!(%error, "the consumer ended; opening another one");
                    self.state = State::Replacing(self.replace());
                    Poll::Ready(Ok(Received::Ended))
                }
            },
            State::Replacing(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(consumer) => {
                    let lease = consumer.lease();
                    self.state = State::Consuming(consumer);
                    Poll::Ready(Ok(Received::Opened(lease)))
                }
                Err(error) => {
                    if error.kind() != ErrorKind::Closed {
                        self.state = State::Replacing(self.replace());
                    }
                    Poll::Ready(Err(error))
                }
            },
        }
    }

    fn replace(&mut self) -> Replacing {
        self.failures = self.failures.saturating_add(1);
        let delay = policy::reconnect_delay(self.failures);
        let (broker, subscription) = (Arc::clone(&self.broker), Arc::clone(&self.subscription));
        let prefetch = self.prefetch;
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            broker.consume(&subscription, prefetch).await
        })
    }

    /// Stops receiving and gives back what was not handed out.
    pub(super) fn close(&mut self) -> Closing {
        let closed = State::Replacing(Box::pin(std::future::pending()));
        match std::mem::replace(&mut self.state, closed) {
            State::Consuming(consumer) => consumer.close(),
            State::Replacing(_) => Box::pin(std::future::ready(Ok(()))),
        }
    }
}
