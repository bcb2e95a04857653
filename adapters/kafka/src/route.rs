use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anybroker_core::{
    Confirmation, Destination, ErrorKind, Hop, Outgoing, Producer, Result, RetryClass, Subscription,
};
use tokio::runtime::Handle;
use tokio::time::{Duration, Instant, sleep};

use crate::error::{again, closed, error_of};
use crate::names::{self, Names};
use crate::publish::{Publisher, Record, Waiting};
use crate::topology::Topology;

/// Publishes: declares each destination at its first use.
pub(crate) struct KafkaProducer {
    pub(crate) topology: Arc<Topology>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) open: AtomicBool,
    pub(crate) max_payload: usize,
    runtime: Handle,
    routes: RwLock<HashMap<Destination, Arc<Route>>>,
}

/// Where a destination's messages go.
struct Route {
    destination: Destination,
    topic: Arc<str>,
    /// Where those go that are to be handled later: a queue has one group, and its retry topic.
    later: Arc<str>,
    declared: AtomicBool,
    waiting: Mutex<Option<Vec<Record>>>,
}

impl KafkaProducer {
    pub(crate) fn new(
        topology: Arc<Topology>,
        publisher: Arc<Publisher>,
        max_payload: usize,
    ) -> Self {
        let (runtime, routes) = (Handle::current(), RwLock::default());
        Self { topology, publisher, open: AtomicBool::new(true), max_payload, runtime, routes }
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
            declared: AtomicBool::new(false),
            waiting: Mutex::new(None),
        });
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(routes.entry(destination.clone()).or_insert(route)))
    }

    fn check(&self, outgoing: &Outgoing) -> Result<Arc<Route>> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.envelope.validate()?;
        let size = outgoing.envelope.payload.len();
        if size > self.max_payload {
            let text = format!(
                "the payload has {size} bytes, the broker takes {}; store it elsewhere and send a reference, or raise max-payload with the topic's max.message.bytes",
                self.max_payload
            );
            return Err(error_of(ErrorKind::TooLarge, "publish", text));
        }
        self.route(&outgoing.destination)
    }

    fn wait(&self, route: Arc<Route>, record: Record) {
        let mut waiting = route.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if route.declared.load(Ordering::Acquire) {
            return self.publisher.send(record);
        }
        if let Some(waiting) = &mut *waiting {
            return waiting.push(record);
        }
        *waiting = Some(vec![record]);
        drop(waiting);
        let (topology, publisher) = (Arc::clone(&self.topology), Arc::clone(&self.publisher));
        self.runtime.spawn(route.open(topology, publisher));
    }
}

impl Route {
    /// Declares the destination, then sends what waits for it, in its order.
    async fn open(self: Arc<Self>, topology: Arc<Topology>, publisher: Arc<Publisher>) {
        let end = Instant::now() + topology.clients.settings.publish_timeout;
        let declared = loop {
            match topology.declare_destination(&self.destination).await {
                Err(error)
                    if error.retry_class() == RetryClass::Transient && Instant::now() < end =>
                {
                    tracing::debug!(%error, "declaring again");
                    sleep(Duration::from_millis(200)).await;
                }
                result => break result,
            }
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let records = waiting.take().unwrap_or_default();
        match declared {
            Ok(()) => {
                for record in records {
                    publisher.send(record);
                }
                self.declared.store(true, Ordering::Release);
            }
            Err(error) => {
                drop(waiting);
                for record in records {
                    record.waiting.answer(Err(again(&error, "publish")));
                }
            }
        }
    }
}

impl Producer for KafkaProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        let route = match self.check(&outgoing) {
            Ok(route) => route,
            Err(error) => return Confirmation::ready(Err(error)),
        };
        let (confirmer, confirmation) = Confirmation::channel();
        let (topic, hop) = match outgoing.delay {
            Some(delay) if !delay.is_zero() => (&route.later, Hop::delayed(delay)),
            _ => (&route.topic, Hop::default()),
        };
        let waiting = Waiting::Publisher(confirmer);
        let envelope = Arc::new(outgoing.envelope);
        let record = Record::new(Arc::clone(topic), envelope, hop, waiting);
        if route.declared.load(Ordering::Acquire) {
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
