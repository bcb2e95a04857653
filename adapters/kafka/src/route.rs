use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anybroker_core::adapter::Room;
use anybroker_core::{
    Capabilities, Confirmation, Destination, Outgoing, Producer, Result, Subscription,
};
use tokio::runtime::Handle;

use crate::error::{BROKER, closed};
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
    declared: AtomicBool,
    waiting: Mutex<Option<Vec<Record>>>,
}

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
        outgoing.check(&self.capabilities)?;
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
        let declare = || async {
            topology.declare_destination(&self.destination).await?;
            limits::check(&topology, &self.topic).await
        };
        let declared = topology.clients.settings.options.within("publish", declare).await;
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
                    record.waiting.answer(Err(error.again().operation("publish")));
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
        let (confirmer, confirmation) = match self.room.channel(&outgoing.envelope) {
            Ok(both) => both,
            Err(error) => return Confirmation::ready(Err(error.broker(BROKER))),
        };
        let hop = outgoing.hop();
        let topic = if hop.not_before.is_some() { &route.later } else { &route.topic };
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
