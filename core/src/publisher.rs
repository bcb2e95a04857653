use std::borrow::Cow;
use std::fmt;
use std::future::IntoFuture;
use std::iter::successors;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{FutureExt, TryFutureExt, join_all};
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};

use crate::cause;
use crate::{
    BoxError, Broker, Confirmation, Destination, Envelope, Error, ErrorKind, Outgoing, Producer,
    Result, RetryClass, TypedMessage,
};

/// Publishes messages; cheap to clone.
///
/// Many publishes may be in flight: the adapter coalesces them into the broker's own batches, so
/// that there is no faster way than to start many and await each.
///
/// It is a [`Service`] over [`Outgoing`] itself, and takes layers: see [`layer`](Self::layer).
#[derive(Clone)]
pub struct Publisher(Target);

#[derive(Clone)]
enum Target {
    Direct(Arc<dyn Producer>),
    Layered(BoxCloneSyncService<Outgoing, (), BoxError>),
}

/// A publish that starts when it is awaited, or by [`start`](Self::start).
#[must_use = "nothing is published until this is awaited or started"]
#[derive(Debug)]
pub struct Publish<'a> {
    publisher: &'a Publisher,
    outgoing: Result<Outgoing>,
}

impl Publisher {
    /// Makes a publisher for a broker.
    pub fn new(broker: &dyn Broker) -> Self {
        Self(Target::Direct(broker.producer()))
    }

    /// Publishes a typed message to its own destination, unless told otherwise with
    /// [`to`](Publish::to). Resolves when the broker has it durably.
    ///
    /// In a handler, though not in a task that it spawns, the message says what led to it: its
    /// causation id is the id of the message that is handled, its correlation id that one's, or its
    /// id where it has none.
    ///
    /// # Cancel safety
    /// As [`Producer::send`]: once awaited or [started](Publish::start) it goes on, through all
    /// layers, whether or not anybody waits for the answer.
    ///
    /// # Errors
    /// As [`Producer::send`], and `Invalid` when the message cannot be encoded.
    pub fn publish<T: TypedMessage>(&self, message: &T) -> Publish<'_> {
        let outgoing = message.to_envelope().map(|mut envelope| {
            cause::attribute(&mut envelope);
            Outgoing::new(T::destination(), envelope)
        });
        Publish { publisher: self, outgoing }
    }

    /// Publishes an envelope as it is.
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub fn publish_envelope(&self, to: impl Into<Destination>, envelope: Envelope) -> Publish<'_> {
        Publish { publisher: self, outgoing: Ok(Outgoing::new(to, envelope)) }
    }

    /// Publishes many messages at once and answers the result of each, in their order. One that
    /// fails stops none of the others.
    pub async fn publish_all<'a, T: TypedMessage>(
        &self,
        messages: impl IntoIterator<Item = &'a T>,
    ) -> Vec<Result<()>> {
        join_all(messages.into_iter().map(|message| self.publish(message).start())).await
    }

    /// Starts to send; the confirmation resolves when the broker has it durably.
    pub fn send(&self, outgoing: Outgoing) -> Confirmation {
        match &self.0 {
            Target::Direct(producer) => producer.send(outgoing),
            Target::Layered(service) => {
                let mut sent = Box::pin(service.clone().oneshot(outgoing).map_err(into_error));
                // At once, so that what the layers pass on at once is sent in the order of the calls.
                match (&mut sent).now_or_never() {
                    Some(result) => Confirmation::ready(result),
                    None => Confirmation::spawn(sent),
                }
            }
        }
    }

    /// Puts a layer around every publish, the last one outermost: to encrypt, to trace, to check.
    ///
    /// # Ordering
    /// Messages of one key are stored in the order of the calls as long as no layer waits before it
    /// passes them on.
    pub fn layer<L>(self, layer: L) -> Self
    where
        L: Layer<Self>,
        L::Service: Service<Outgoing, Response = (), Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let service = layer.layer(self).map_err(Into::into);
        Self(Target::Layered(BoxCloneSyncService::new(service)))
    }
}

impl Publish<'_> {
    /// Publishes to another destination.
    pub fn to(self, destination: impl Into<Destination>) -> Self {
        self.change(|outgoing| outgoing.destination = destination.into())
    }

    /// No handler sees it earlier than `delay` from now.
    pub fn delay(self, delay: Duration) -> Self {
        self.change(|outgoing| outgoing.delay = Some(delay))
    }

    /// Lets a topic without groups swallow it.
    pub fn allow_unrouted(self) -> Self {
        self.change(|outgoing| outgoing.allow_unrouted = true)
    }

    /// Sets the id; publishing the same id again is how duplicates are told.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.change(|outgoing| outgoing.envelope.id = id.into())
    }

    /// Sets the ordering key.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.change(|outgoing| outgoing.envelope.key = Some(key.into()))
    }

    /// Sets who made it.
    pub fn source(self, source: impl Into<Cow<'static, str>>) -> Self {
        self.change(|outgoing| outgoing.envelope.source = source.into())
    }

    /// Sets the conversation it belongs to.
    pub fn correlation_id(self, id: impl Into<String>) -> Self {
        self.change(|outgoing| outgoing.envelope.correlation_id = Some(id.into()))
    }

    /// Sets the message that led to it.
    pub fn causation_id(self, id: impl Into<String>) -> Self {
        self.change(|outgoing| outgoing.envelope.causation_id = Some(id.into()))
    }

    /// Sets from when on it is of no use.
    pub fn expires(self, expires: SystemTime) -> Self {
        self.change(|outgoing| outgoing.envelope.expires = Some(expires))
    }

    /// Sets a header; a name that breaks the rules is the publish's error.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.outgoing = self.outgoing.and_then(|mut outgoing| {
            outgoing.envelope.headers.insert(name, value)?;
            Ok(outgoing)
        });
        self
    }

    /// Starts to publish; the confirmation resolves when the broker has it durably.
    pub fn start(self) -> Confirmation {
        match self.outgoing {
            Ok(outgoing) => self.publisher.send(outgoing),
            Err(error) => Confirmation::ready(Err(error)),
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Outgoing)) -> Self {
        if let Ok(outgoing) = &mut self.outgoing {
            change(outgoing);
        }
        self
    }
}

impl IntoFuture for Publish<'_> {
    type Output = Result<()>;
    type IntoFuture = Confirmation;

    fn into_future(self) -> Confirmation {
        self.start()
    }
}

impl Service<Outgoing> for Publisher {
    type Response = ();
    type Error = Error;
    type Future = Confirmation;

    /// Always ready: the confirmation is the back-pressure.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outgoing: Outgoing) -> Confirmation {
        self.send(outgoing)
    }
}

impl dyn Broker {
    /// A publisher on this broker.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(self)
    }
}

/// A layer's own error becomes the source of ours; ours comes through as it was, and beneath a
/// layer's it tells what happened. Otherwise nobody knows: a timeout may have cut off a send.
fn into_error(error: BoxError) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let ours = successors(error.source(), |error| error.source())
        .find_map(|error| error.downcast_ref::<Error>());
    let (kind, class) = ours.map_or((ErrorKind::Broker, RetryClass::Ambiguous), |error| {
        (error.kind(), error.retry_class())
    });
    Error::new(kind, "a layer of the publisher failed").class(class).with_source(error)
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Direct(producer) => f.debug_tuple("Publisher").field(producer).finish(),
            Target::Layered(_) => f.write_str("Publisher(layered)"),
        }
    }
}

#[cfg(test)]
mod tests;
