use std::cmp;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

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
    /// Of how many consumers its loop knows that were opened in place of others.
    opened: u64,
    presence: Option<Presence>,
    /// How many deliveries its loop has asked for; see [`ask_for`](Self::ask_for).
    asked: usize,
}

/// Counts a loop that has yet to drain, and no more once it is dropped.
struct Presence(Arc<Shared>);

struct Shared {
    broker: Arc<dyn Broker>,
    feed: Mutex<Feed>,
    waiting: Arc<Waiting>,
    /// Wakes them.
    waker: Waker,
    /// The end of the consumer, for all loops to wait for.
    closing: Mutex<Option<Closing>>,
    /// How many of them have yet to drain.
    present: AtomicUsize,
}

/// The consumer, and what it is opened with.
struct Feed {
    broker: Arc<dyn Broker>,
    subscription: Arc<Subscription>,
    /// What all loops have asked for.
    prefetch: usize,
    state: State,
    failures: u32,
    /// How many were opened in place of one that ended.
    opened: u64,
}

enum State {
    Consuming(Box<dyn Consumer>),
    /// In a task, which goes on while no loop has room.
    Replacing(JoinSet<Opened>),
    /// The broker was closed.
    Closed(Error),
    /// The worker ends.
    Ending,
}

type Opened = Result<Box<dyn Consumer>>;

type Closing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What a poll of a [`Source`] has brought.
pub(super) enum Received {
    Deliveries,
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
    /// Opens a consumer for loops that ask for so many deliveries each.
    pub(super) async fn open(
        broker: &Arc<dyn Broker>,
        subscription: &Arc<Subscription>,
        asked: &[usize],
    ) -> Result<Vec<Self>> {
        let prefetch = asked.iter().sum();
        let feed = Mutex::new(Feed {
            broker: Arc::clone(broker),
            subscription: Arc::clone(subscription),
            prefetch,
            state: State::Consuming(broker.consume(subscription, prefetch).await?),
            failures: 0,
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
            present: AtomicUsize::new(asked.len()),
        });
        let source = |(index, asked): (usize, &usize)| Self {
            shared: Arc::clone(&shared),
            index,
            opened: 0,
            presence: Some(Presence(Arc::clone(&shared))),
            asked: *asked,
        };
        Ok(asked.iter().enumerate().map(source).collect())
    }

    /// Changes how many deliveries its loop has room for, those that it holds included; returns
    /// whether that is less or more than before.
    pub(super) fn ask_for(&mut self, deliveries: usize) -> cmp::Ordering {
        let change = deliveries.cmp(&self.asked);
        if change.is_eq() {
            return change;
        }
        let mut feed = self.shared.feed();
        let prefetch = feed.prefetch - self.asked + deliveries;
        feed.prefetch = prefetch;
        self.asked = deliveries;
        if let State::Consuming(consumer) = &mut feed.state {
            consumer.set_prefetch(prefetch);
        }
        drop(feed);
        if change.is_gt() {
            // Another loop may wait for the room.
            self.shared.waker.wake_by_ref();
        }
        change
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
        self.opened = feed.opened;
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
        let mut feed = self.shared.feed();
        let consumer = match std::mem::replace(&mut feed.state, State::Ending) {
            State::Consuming(consumer) => Some(consumer),
            State::Replacing(mut opening) => opened(opening.try_join_next()).ok(),
            State::Closed(_) | State::Ending => None,
        };
        if let Some(consumer) = consumer {
            *self.shared.closing() = Some(consumer.close());
        }
        drop(feed);
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
    pub(super) fn drained(&mut self) -> impl FnOnce() -> bool + use<> {
        let (shared, presence) = (Arc::clone(&self.shared), self.presence.take());
        move || {
            drop(presence);
            shared.present.load(Ordering::Acquire) == 0
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::AcqRel);
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
            State::Replacing(_) | State::Closed(_) | State::Ending => None,
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
                    self.poll_receive(cx, max, out)
                }
            },
            State::Replacing(opening) => match opened(ready!(opening.poll_join_next(cx))) {
                Ok(mut consumer) => {
                    // It may have changed since the consumer was asked for.
                    consumer.set_prefetch(self.prefetch);
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
            State::Ending => Poll::Pending,
        }
    }

    fn replace(&mut self) -> JoinSet<Opened> {
        self.failures = self.failures.saturating_add(1);
        let delay = policy::reconnect_delay(self.failures);
        let (broker, subscription) = (Arc::clone(&self.broker), Arc::clone(&self.subscription));
        let prefetch = self.prefetch;
        let mut opening = JoinSet::new();
        opening.spawn(async move {
            tokio::time::sleep(delay).await;
            broker.consume(&subscription, prefetch).await
        });
        opening
    }
}

fn opened(joined: Option<std::result::Result<Opened, JoinError>>) -> Opened {
    let panicked = || Error::new(ErrorKind::Unavailable, "opening a consumer panicked");
    match joined {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => Err(panicked().with_source(error)),
        None => Err(panicked()),
    }
}
