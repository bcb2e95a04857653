//! What the tests send and receive with.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, Confirmation, Consumer, Delivery, Depth, Destination, Envelope, Outcome, Outgoing,
    Result, Subscription,
};
use anybroker_memory::MemoryBroker;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
pub(crate) const NOW: Duration = Duration::ZERO;

pub(crate) struct Receiver(pub(crate) Box<dyn Consumer>);

impl Receiver {
    pub(crate) async fn open(broker: &MemoryBroker, subscription: &Subscription) -> Self {
        Self::with_prefetch(broker, subscription, 64).await
    }

    pub(crate) async fn with_prefetch(
        broker: &MemoryBroker,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Self {
        Self(broker.consume(subscription, prefetch).await.unwrap())
    }

    /// Waits for up to `max` deliveries.
    pub(crate) async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>> {
        let mut out = Vec::new();
        std::future::poll_fn(|cx| self.0.poll_receive(cx, max, &mut out)).await?;
        Ok(out)
    }

    pub(crate) async fn one(&mut self) -> Delivery {
        let one = tokio::time::timeout(SECOND * 3600 * 24, self.receive(1)).await;
        one.expect("nothing came within a day").unwrap().remove(0)
    }

    /// Receives one that must have this id.
    pub(crate) async fn expect(&mut self, id: &str) -> Delivery {
        let delivery = self.one().await;
        assert_eq!(delivery.envelope().id, id);
        delivery
    }

    /// What can be received without waiting.
    pub(crate) async fn ready(&mut self) -> Vec<Delivery> {
        // A timeout of zero polls once.
        tokio::time::timeout(NOW, self.receive(64)).await.map_or(Vec::new(), Result::unwrap)
    }

    pub(crate) async fn expect_nothing_for(&mut self, time: Duration) {
        if let Ok(received) = tokio::time::timeout(time, self.receive(1)).await {
            panic!("received {received:?}");
        }
    }
}

pub(crate) fn broker() -> Arc<MemoryBroker> {
    MemoryBroker::builder().build()
}

pub(crate) fn message(id: &str) -> Envelope {
    Envelope::new("test.message", "{}").with_id(id)
}

pub(crate) fn send(
    broker: &MemoryBroker,
    to: impl Into<Destination>,
    envelope: Envelope,
) -> Confirmation {
    broker.producer().send(Outgoing::new(to, envelope))
}

/// Publishes messages with these ids, one after the other.
pub(crate) async fn publish(broker: &MemoryBroker, to: impl Into<Destination>, ids: &[&str]) {
    let to = to.into();
    for id in ids {
        send(broker, to.clone(), message(id)).await.unwrap();
    }
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| &*delivery.envelope().id).collect()
}

/// Ready, in flight, delayed, dead-lettered.
pub(crate) async fn depth(broker: &MemoryBroker, subscription: &Subscription) -> [u64; 4] {
    let Depth { ready, in_flight, delayed, dead_lettered, .. } =
        broker.depth(subscription).await.unwrap();
    [ready, in_flight, delayed, dead_lettered].map(Option::unwrap)
}

pub(crate) fn retry(after: Duration) -> Outcome {
    Outcome::Retry { after }
}

pub(crate) fn release(after: Duration) -> Outcome {
    Outcome::Release { after }
}
