use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anybroker_core::{
    Broker, Delivery, Depth, Destination, Envelope, Error, ErrorKind, Headers, Outgoing, Queue,
    Subscription, Topic,
};
use tokio::time::{Instant, sleep};

use super::case::Checked;
use super::receiver::Receiver;
use super::target::Target;

/// How long a case waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long a case watches for what must not happen.
pub(super) const QUIET: Duration = Duration::from_millis(800);

/// What a case works with: connections, and names that nobody else uses.
#[derive(Clone)]
pub(super) struct Lab {
    target: Target,
    broker: Arc<dyn Broker>,
    steps: Steps,
}

/// Where a case stands.
#[derive(Clone, Default)]
pub(super) struct Steps(Arc<Mutex<String>>);

impl Lab {
    pub(super) async fn open(target: &Target, steps: Steps) -> Checked<Self> {
        let broker = (target.connect)().await?;
        Ok(Self { target: target.clone(), broker, steps })
    }

    /// The connection of this case.
    pub(super) fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// The name of what is tested.
    pub(super) fn target(&self) -> &str {
        &self.target.name
    }

    /// Opens another connection to the same messages.
    pub(super) async fn connect(&self) -> Checked<Arc<dyn Broker>> {
        (self.target.connect)().await
    }

    /// The same case on another connection.
    pub(super) async fn reconnected(&self) -> Checked<Self> {
        Ok(self.on(self.connect().await?))
    }

    /// The same case on this connection.
    pub(super) fn on(&self, broker: Arc<dyn Broker>) -> Self {
        Self { broker, ..self.clone() }
    }

    /// Opens a connection that only checks what it uses.
    pub(super) async fn verifying(&self) -> Checked<Arc<dyn Broker>> {
        let connect = self.target.verifying.as_ref().ok_or("the target has no verifying hook")?;
        connect().await
    }

    /// Opens a connection that takes what it uses for declared.
    pub(super) async fn assuming(&self) -> Checked<Arc<dyn Broker>> {
        let connect = self.target.assuming.as_ref().ok_or("the target has no assuming hook")?;
        connect().await
    }

    /// Kills the broker and starts it again.
    pub(super) async fn restart(&self) -> Checked {
        let restart = &self.target.mortal.as_ref().ok_or("the target cannot be killed")?.restart;
        restart().await
    }

    /// Notes where the case stands, for the message of its failure.
    pub(super) fn step(&self, step: impl Into<String>) {
        *self.steps.0.lock().unwrap_or_else(PoisonError::into_inner) = step.into();
    }

    /// Publishes, all at once, and waits for each confirmation.
    pub(super) async fn publish(
        &self,
        destination: impl Into<Destination>,
        envelopes: impl IntoIterator<Item = Envelope>,
    ) -> Checked {
        let (destination, producer) = (destination.into(), self.broker.producer());
        let sends: Vec<_> = envelopes
            .into_iter()
            .map(|envelope| producer.send(Outgoing::new(destination.clone(), envelope)))
            .collect();
        for send in sends {
            send.await?;
        }
        Ok(())
    }

    /// Starts to consume on the connection of this case.
    pub(super) async fn consume(&self, subscription: &Subscription) -> Checked<Receiver> {
        Receiver::open(&self.broker, subscription, 64).await
    }

    /// Waits until the depth is as expected; brokers count at their own pace.
    pub(super) async fn depth(
        &self,
        subscription: &Subscription,
        what: &str,
        expected: impl Fn(&Depth) -> bool,
    ) -> Checked {
        let end = Instant::now() + PATIENCE;
        loop {
            let depth = self.broker.depth(subscription).await?;
            if expected(&depth) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("depth is not {what} after {PATIENCE:?} but {depth:?}").into());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.write_str(if step.is_empty() { "the beginning" } else { &step })
    }
}

/// A queue that nobody else uses.
pub(super) fn queue() -> Queue {
    Queue::new(fresh("q"))
}

/// A topic that nobody else uses.
pub(super) fn topic() -> Topic {
    Topic::new(fresh("t"))
}

impl Lab {
    /// What nobody else uses, and a group that gets what is sent there: of a topic, or a queue
    /// where there are no topics.
    pub(super) fn group(&self, name: &'static str) -> (Destination, Subscription) {
        if self.broker.capabilities().topics {
            let topic = topic();
            (topic.clone().into(), Subscription::topic(topic).group(name))
        } else {
            let queue = queue();
            (queue.clone().into(), Subscription::queue(queue))
        }
    }
}

/// A name that no other case and no other run uses.
fn fresh(kind: &str) -> String {
    static RUN: LazyLock<String> = LazyLock::new(|| {
        let id = Envelope::new("run", "").id;
        // The end of a UUIDv7 is random, its beginning the time.
        id.bytes().rev().take(10).map(char::from).filter(|c| *c != '-').collect()
    });
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{kind}{}.{}", *RUN, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Messages `m0`, `m1`, …
pub(super) fn messages(count: usize) -> impl Iterator<Item = Envelope> {
    (0..count).map(|number| message(&format!("m{number}")))
}

/// A message with this id.
pub(super) fn message(id: &str) -> Envelope {
    Envelope::new("conformance.message", format!("{{\"id\":\"{id}\"}}")).with_id(id)
}

/// The ids `m0`, `m1`, … in their order.
pub(super) fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("m{number}")).collect()
}

/// The ids of deliveries, sorted as [`ids`] has them.
pub(super) fn ids_of(deliveries: &[Delivery]) -> Vec<String> {
    sorted(deliveries.iter().map(|delivery| delivery.envelope().id.clone()).collect())
}

/// Checks that an envelope is the one that was sent. Headers have no order, as CloudEvents
/// attributes have none.
pub(super) fn same(found: &Envelope, sent: &Envelope) {
    let sorted = |envelope: &Envelope| {
        let mut headers: Vec<_> = envelope.headers.iter().collect();
        headers.sort_unstable();
        headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(sorted(found), sorted(sent));
    let without = |envelope: &Envelope| Envelope { headers: Headers::new(), ..envelope.clone() };
    assert_eq!(without(found), without(sent));
}

/// Sorts ids by length, then by text: `m2` comes before `m10`.
pub(super) fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    ids
}

/// The error of an operation that must fail with this kind.
pub(super) async fn refused<T>(
    kind: ErrorKind,
    operation: impl Future<Output = Result<T, Error>>,
) -> Checked<Error> {
    match tokio::time::timeout(PATIENCE, operation).await {
        Err(_elapsed) => Err(format!("expected {kind:?}, got no answer in {PATIENCE:?}").into()),
        Ok(Ok(_)) => Err(format!("expected {kind:?}, got success").into()),
        Ok(Err(error)) if error.kind() == kind => Ok(error),
        Ok(Err(error)) => Err(format!("expected {kind:?}, got {error:?}").into()),
    }
}
