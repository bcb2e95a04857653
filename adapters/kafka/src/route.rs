use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anybroker_core::adapter::{Room, pause};
use anybroker_core::{
    Capabilities, Confirmation, Destination, Error, ErrorKind, Outgoing, Producer, Result,
    RetryClass, Subscription,
};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use crate::error::{BROKER, closed, error_of};
use crate::limits;
use crate::names::{self, Names};
use crate::publish::{Publisher, Record, Waiting};
use crate::topology::Topology;

/// Publishes: declares each destination at its first use.
pub(crate) struct KafkaProducer {
    pub(crate) topology: Arc<Topology>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) open: AtomicBool,
    pub(crate) capabilities: Capabilities,
    runtime: Handle,
    room: Room,
    routes: RwLock<HashMap<Destination, Arc<Route>>>,
}

/// Where a destination's messages go.
struct Route {
    destination: Destination,
    topic: Arc<str>,
    /// Where those go that are to be handled later: a queue has one group, and its retry topic.
    later: Arc<str>,
    /// How many topics had been found missing when it was declared; none of them is its own.
    declared: AtomicU64,
    /// What is sent once it is declared, the oldest first; `None` while nobody declares it.
    waiting: Mutex<Option<VecDeque<Record>>>,
}

/// Of a destination that was never declared.
const NEVER: u64 = u64::MAX;

/// How often what waits for a destination is looked through for what has waited too long.
const LOOK: Duration = Duration::from_millis(100);

impl KafkaProducer {
    pub(crate) fn new(
        topology: Arc<Topology>,
        publisher: Arc<Publisher>,
        capabilities: Capabilities,
    ) -> Self {
        let (runtime, routes) = (Handle::current(), RwLock::default());
        let (open, room) = (AtomicBool::new(true), Room::default());
        Self { topology, publisher, open, capabilities, runtime, room, routes }
    }

    fn route(&self, destination: &Destination) -> Result<Arc<Route>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(destination) {
            return Ok(Arc::clone(route));
        }
        drop(routes);
        let prefix = self.topology.prefix();
        let topic: Arc<str> = names::topic(destination, prefix)?.into();
        let later = match destination {
            Destination::Queue(queue) if !destination.is_ordered() => {
                Names::new(&Subscription::queue(queue.clone()), prefix)?.retry.into()
            }
            _ => Arc::clone(&topic),
        };
        let route = Arc::new(Route {
            destination: destination.clone(),
            topic,
            later,
            declared: AtomicU64::new(NEVER),
            waiting: Mutex::new(None),
        });
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(routes.entry(destination.clone()).or_insert(route)))
    }

    fn check(&self, outgoing: &Outgoing) -> Result<Arc<Route>> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.check(&self.capabilities)?;
        self.route(&outgoing.destination)
    }

    fn wait(&self, route: Arc<Route>, record: Record) {
        let mut waiting = route.waiting();
        if route.is_declared(&self.publisher) {
            return self.publisher.send(record);
        }
        if let Some(waiting) = &mut *waiting {
            return waiting.push_back(record);
        }
        *waiting = Some(VecDeque::from([record]));
        drop(waiting);
        let (topology, publisher) = (Arc::clone(&self.topology), Arc::clone(&self.publisher));
        self.runtime.spawn(route.open(topology, publisher));
    }

    /// Waits until nothing waits for its destination to be declared any more: it was handed to the
    /// publisher, or has failed.
    pub(crate) async fn declared_all(&self) {
        let routes: Vec<_> = {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            routes.values().cloned().collect()
        };
        for route in routes {
            while route.waiting().as_ref().is_some_and(|waiting| !waiting.is_empty()) {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

impl Route {
    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<Record>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_declared(&self, publisher: &Publisher) -> bool {
        self.declared.load(Ordering::Acquire) == publisher.missing()
    }

    /// Declares the destination, then sends what waits for it, in its order.
    ///
    /// What waits too long fails meanwhile; the declaration goes on for those that came later.
    async fn open(self: Arc<Self>, topology: Arc<Topology>, publisher: Arc<Publisher>) {
        let mut failures = 0;
        let mut last = None;
        loop {
            let missing = publisher.missing();
            if self.declared.load(Ordering::Acquire) != NEVER {
                topology.forget();
            }
            let declare = async {
                topology.declare_destination(&self.destination).await?;
                limits::check(&topology, &self.topic).await
            };
            let declared = self.expiring(publisher.timeout, last.as_ref(), declare).await;
            let Some(error) = self.declared(declared, missing, &publisher) else { return };
            tracing::debug!(%error, topic = &*self.topic, "declaring it again");
            last = Some(error);
            failures += 1;
            self.expiring(publisher.timeout, last.as_ref(), pause(failures)).await;
        }
    }

    /// Sends what waits, or fails it; returns the error after which to declare again.
    fn declared(
        &self,
        declared: Result<()>,
        missing: u64,
        publisher: &Arc<Publisher>,
    ) -> Option<Error> {
        let mut waiting = self.waiting();
        match declared {
            Ok(()) => {
                for record in waiting.take().unwrap_or_default() {
                    publisher.send(record);
                }
                // Last, as what is sent after it does not wait for the lock: it would pass those.
                self.declared.store(missing, Ordering::Release);
                None
            }
            Err(error) if error.retry_class() == RetryClass::Transient => {
                if waiting.as_ref().is_none_or(VecDeque::is_empty) {
                    *waiting = None;
                    return None;
                }
                Some(error)
            }
            Err(error) => {
                let records = waiting.take().unwrap_or_default();
                drop(waiting);
                for record in records {
                    record.waiting.answer(Err(error.again().operation("publish")));
                }
                None
            }
        }
    }

    /// Waits for the work, which no deadline of what waits for it cuts off.
    async fn expiring<T>(
        &self,
        longest: Duration,
        last: Option<&Error>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match timeout(LOOK, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.expire(longest, last),
            }
        }
    }

    /// Fails what has waited too long, with the last error of its declaration.
    fn expire(&self, longest: Duration, last: Option<&Error>) {
        let mut expired = Vec::new();
        if let Some(waiting) = &mut *self.waiting() {
            while waiting.front().is_some_and(|record| record.since.elapsed() >= longest) {
                expired.extend(waiting.pop_front());
            }
        }
        for record in expired {
            let error = last.map_or_else(
                || {
                    let text = "the destination could not be declared within the publish timeout";
                    error_of(ErrorKind::Timeout, "publish", text)
                },
                |error| error.again().operation("publish"),
            );
            // Nothing of it was sent.
            record.waiting.answer(Err(error.class(RetryClass::Transient)));
        }
    }
}

impl Producer for KafkaProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        let route = match self.check(&outgoing) {
            Ok(route) => route,
            Err(error) => return Confirmation::ready(Err(error)),
        };
        let (confirmer, confirmation) = match self.room.channel(&outgoing.envelope) {
            Ok(both) => both,
            Err(error) => return Confirmation::ready(Err(error.broker(BROKER))),
        };
        let hop = outgoing.hop();
        let topic = if hop.not_before.is_some() { &route.later } else { &route.topic };
        let waiting = Waiting::Publisher(confirmer);
        let envelope = Arc::new(outgoing.envelope);
        let record = Record::new(Arc::clone(topic), envelope, hop, waiting);
        if route.is_declared(&self.publisher) {
            self.publisher.send(record);
        } else {
            self.wait(route, record);
        }
        confirmation
    }
}

impl fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaProducer").finish_non_exhaustive()
    }
}
