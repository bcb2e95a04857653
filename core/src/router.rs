use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tower::{Service, ServiceExt as _};

use crate::{BoxError, Handler, HandlerOf, Message, Outcome, Reason, TypedMessage};

/// Gives each message of a subscription to the handler of its type.
///
/// Routes go by type alone; a handler reads the versions that its message knows. A route takes only a
/// handler of its own message ([`HandlerOf`](crate::HandlerOf)). The router is
/// always ready: it runs a clone of the chosen handler, and waits for that clone's readiness with
/// the message in hand, so that a route at its limit does not hold up the others.
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// # use anybroker_macros::Event;
/// # use std::time::Duration;
/// use anybroker::{Router, Unknown, handler_fn};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.created")]
/// struct OrderCreated { order_id: u64 }
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.cancelled")]
/// struct OrderCancelled { order_id: u64 }
///
/// let router = Router::new()
///     .route::<OrderCreated, _>(handler_fn(|_: OrderCreated, _| async {}))
///     .route::<OrderCancelled, _>(handler_fn(|_: OrderCancelled, _| async {}))
///     .unknown(Unknown::Release { after: Duration::from_secs(30) });
/// ```
///
/// # Defaults
/// Without routes, every type is unknown; unknown types go to the dead-letter queue.
#[derive(Clone, Default)]
pub struct Router {
    routes: Arc<BTreeMap<&'static str, Arc<dyn Route>>>,
    unknown: Unknown,
}

/// What becomes of a message whose type no route takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// It goes to the dead-letter queue with the reason `unknown-type`, from where it can be sent
    /// back once a handler exists.
    #[default]
    DeadLetter,
    /// It is acknowledged unseen, for groups that want only some types of a topic.
    Ack,
    /// It is given back, with no attempt used: during a rolling deploy another process of the
    /// group may already have a handler for it. A type that nobody handles comes back for ever.
    Release {
        /// How long it stays hidden.
        after: Duration,
    },
}

impl Router {
    /// Makes a router without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives messages of `T`'s type to a handler of `T`.
    ///
    /// # Panics
    /// When another route takes the type.
    #[track_caller]
    pub fn route<T: TypedMessage, S: Handler + HandlerOf<T> + Sync>(self, handler: S) -> Self {
        self.route_service::<T, S>(handler)
    }

    /// Gives messages of `T`'s type to any service: to one that reads the envelope itself, or to a
    /// handler under layers that the compiler does not know. Nothing checks that it takes them.
    ///
    /// # Panics
    /// When another route takes the type.
    #[track_caller]
    pub fn route_service<T: TypedMessage, S: Handler + Sync>(mut self, service: S) -> Self {
        let known = Arc::make_mut(&mut self.routes).insert(T::TYPE, Arc::new(service));
        assert!(known.is_none(), "two routes take the type `{}`; keep one", T::TYPE);
        self
    }

    /// Sets what becomes of messages whose type no route takes; [`Unknown::DeadLetter`] unless
    /// set.
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.unknown = unknown;
        self
    }

    fn outcome_of_unknown(&self, r#type: &str) -> Outcome {
        match self.unknown {
            Unknown::DeadLetter => {
                let known: Vec<_> = self.routes.keys().copied().collect();
                let error = format!(
                    "no route takes the type `{}`; there are routes for {}",
                    r#type,
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                );
                Outcome::dead_letter(Reason::UNKNOWN_TYPE, error)
            }
            Unknown::Ack => Outcome::Ack,
            Unknown::Release { after } => Outcome::Release { after },
        }
    }
}

impl Service<Message> for Router {
    type Response = Outcome;
    type Error = BoxError;
    type Future = RouterFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let r#type = &*message.envelope().r#type;
        RouterFuture(match self.routes.get(r#type) {
            Some(route) => State::Routed(route.run(message)),
            None => State::Unknown(Some(self.outcome_of_unknown(r#type))),
        })
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("types", &self.routes.keys())
            .field("unknown", &self.unknown)
            .finish()
    }
}

/// The future of a [`Router`].
pub struct RouterFuture(State);

type Running = Pin<Box<dyn Future<Output = Result<Outcome, BoxError>> + Send>>;

enum State {
    Routed(Running),
    Unknown(Option<Outcome>),
}

impl Future for RouterFuture {
    type Output = Result<Outcome, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Routed(running) => running.as_mut().poll(cx),
            State::Unknown(outcome) => Poll::Ready(
                outcome.take().ok_or_else(|| "a router's future was polled after its end".into()),
            ),
        }
    }
}

impl fmt::Debug for RouterFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterFuture").finish_non_exhaustive()
    }
}

/// A handler without its type; the one box per message is the price of having several.
trait Route: Send + Sync {
    fn run(&self, message: Message) -> Running;
}

impl<S: Handler + Sync> Route for S {
    fn run(&self, message: Message) -> Running {
        let handler = self.clone();
        Box::pin(async move { handler.oneshot(message).await.map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests;
