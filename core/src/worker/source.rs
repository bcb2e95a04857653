use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use super::policy;
use crate::{
    Broker, Capabilities, Consumer, Delivery, Error, ErrorKind, Result, RetryClass, Settler,
    Subscription,
};

/// Where a loop's deliveries come from: a consumer, which several loops may share, and another one
/// when that has ended.
///
/// One consumer sees all that the process holds: a crash counts once for each message, and what may
/// have caused it is handed out alone.
pub(super) struct Source {
    shared: Arc<Shared>,
    /// Among those who share it.
    index: usize,
    /// Of how many ends and beginnings of consumers its loop knows.
    ended: u64,
    opened: u64,
}

struct Shared {
    broker: Arc<dyn Broker>,
    feed: Mutex<Feed>,
    waiting: Arc<Waiting>,
    /// Wakes them.
    waker: Waker,
    /// The end of the consumer, for all loops to wait for.
    closing: Mutex<Option<Closing>>,
    /// How many of them have yet to drain.
    left: AtomicUsize,
}

/// The consumer, and what it is opened with.
struct Feed {
    broker: Arc<dyn Broker>,
    subscription: Arc<Subscription>,
    prefetch: usize,
    state: State,
    failures: u32,
    /// How many consumers have ended, and how many were opened in their place.
    ended: u64,
    opened: u64,
}

enum State {
    Consuming(Box<dyn Consumer>),
    Replacing(Replacing),
    /// The broker was closed.
    Closed(Error),
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

/// The loops that wait for deliveries. All are woken: the first may be held up by a handler that
/// blocks its thread.
#[derive(Default)]
struct Waiting(Mutex<Vec<(usize, Waker)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Waker)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, index: usize, waker: &Waker) {
        self.lock().push((index, waker.clone()));
    }

    /// Answers whether there are others.
    fn leave(&self, index: usize) -> bool {
        let mut waiting = self.lock();
        waiting.retain(|(other, _)| *other != index);
        !waiting.is_empty()
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let all = std::mem::take(&mut *self.lock());
        for (_, waker) in all {
            waker.wake();
        }
    }
}

impl Source {
    /// Opens a consumer for so many loops.
    pub(super) async fn open(
        broker: &Arc<dyn Broker>,
        subscription: &Arc<Subscription>,
        prefetch: usize,
        loops: usize,
    ) -> Result<Vec<Self>> {
        let feed = Mutex::new(Feed {
            broker: Arc::clone(broker),
            subscription: Arc::clone(subscription),
            prefetch,
            state: State::Consuming(broker.consume(subscription, prefetch).await?),
            failures: 0,
            ended: 0,
            opened: 0,
        });
        let waiting = Arc::<Waiting>::default();
        let waker = Waker::from(Arc::clone(&waiting));
        let shared = Arc::new(Shared {
            broker: Arc::clone(broker),
            feed,
            waiting,
            waker,
            closing: Mutex::default(),
            left: AtomicUsize::new(loops),
        });
        let source = |index| Self { shared: Arc::clone(&shared), index, ended: 0, opened: 0 };
        Ok((0..loops).map(source).collect())
    }

    pub(super) fn lease(&self) -> Lease {
        self.shared.feed().lease()
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        self.shared.broker.capabilities()
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
        let Shared { waiting, waker, .. } = &*self.shared;
        let mut feed = self.shared.feed();
        if self.ended < feed.ended {
            self.ended = feed.ended;
            return Poll::Ready(Ok(Received::Ended));
        }
        if self.opened < feed.opened {
            self.opened = feed.opened;
            return Poll::Ready(Ok(Received::Opened(feed.lease())));
        }
        let others = waiting.leave(self.index);
        if max == 0 && others {
            return Poll::Ready(Ok(Received::Deliveries));
        }
        if max > 0 {
            // Before, or what comes meanwhile would wake nobody.
            waiting.enter(self.index, cx.waker());
        }
        // Who receives something asks again until there is nothing, or no room.
        let received = ready!(feed.poll_receive(&mut Context::from_waker(waker), max, out));
        waiting.leave(self.index);
        (self.ended, self.opened) = (feed.ended, feed.opened);
        drop(feed);
        if !matches!(received, Ok(Received::Deliveries)) {
            // All are to know.
            waker.wake_by_ref();
        }
        Poll::Ready(received)
    }

    /// Stops receiving, for all loops, and gives back what was not handed out. It ends when the
    /// consumer is closed, whichever loop waits for it.
    pub(super) fn close(&mut self) -> Closing {
        let closed = State::Replacing(Box::pin(std::future::pending()));
        let state = std::mem::replace(&mut self.shared.feed().state, closed);
        if let State::Consuming(consumer) = state {
            *self.shared.closing() = Some(consumer.close());
        }
        let (shared, index) = (Arc::clone(&self.shared), self.index);
        Box::pin(poll_fn(move |cx| {
            let mut closing = shared.closing();
            let Some(close) = &mut *closing else { return Poll::Ready(Ok(())) };
            shared.waiting.leave(index);
            shared.waiting.enter(index, cx.waker());
            let closed = ready!(close.as_mut().poll(&mut Context::from_waker(&shared.waker)));
            *closing = None;
            shared.waker.wake_by_ref();
            Poll::Ready(closed)
        }))
    }

    /// What notes that this loop has drained, and answers whether it was the last one.
    pub(super) fn drained(&self) -> impl FnOnce() -> bool + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.waiting.leave(self.index);
    }
}

impl Shared {
    fn feed(&self) -> MutexGuard<'_, Feed> {
        // A consumer that panicked is polled again, as if it were one loop's alone.
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closing(&self) -> MutexGuard<'_, Option<Closing>> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    fn lease(&self) -> Lease {
        match &self.state {
            State::Consuming(consumer) => consumer.lease(),
            State::Replacing(_) | State::Closed(_) => None,
        }
    }

    fn poll_receive(
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
                    self.ended += 1;
                    Poll::Ready(Ok(Received::Ended))
                }
            },
            State::Replacing(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(consumer) => {
                    let lease = consumer.lease();
                    self.state = State::Consuming(consumer);
                    self.opened += 1;
                    Poll::Ready(Ok(Received::Opened(lease)))
                }
                Err(error) => {
                    self.state = if error.kind() == ErrorKind::Closed {
                        State::Closed(error.again())
                    } else {
                        State::Replacing(self.replace())
                    };
                    Poll::Ready(Err(error))
                }
            },
            State::Closed(error) => Poll::Ready(Err(error.again())),
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
}
