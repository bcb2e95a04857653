//! A broker that does what a test says, and what the tests share.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anybroker_core::{
    BoxError, Broker, Capabilities, Confirmation, Consumer, DeadLetterFilter, Delivery, Depth,
    Destination, Envelope, Error, ErrorKind, Outcome, Outgoing, Peek, Producer, Queue, Redrive,
    Report, Result, Settler, Subscription, Worker,
};
use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

pub(crate) type Answer = Result<Outcome, BoxError>;

/// Hands out the consumers that a test has prepared, one for each call of `consume`.
pub(crate) struct Double {
    capabilities: Capabilities,
    consumers: Mutex<Vec<Box<dyn Consumer>>>,
}

impl Double {
    /// The first consumer is handed out first.
    pub(crate) fn broker(consumers: Vec<Box<dyn Consumer>>) -> Arc<dyn Broker> {
        Self::with(Capabilities::new("double", 1024), consumers)
    }

    pub(crate) fn with(
        capabilities: Capabilities,
        consumers: Vec<Box<dyn Consumer>>,
    ) -> Arc<dyn Broker> {
        let consumers = Mutex::new(consumers.into_iter().rev().collect());
        Arc::new(Self { capabilities, consumers })
    }
}

#[async_trait]
impl Broker for Double {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn producer(&self) -> Arc<dyn Producer> {
        unreachable!("nothing is published")
    }

    async fn declare_destination(&self, _: &Destination) -> Result<()> {
        Ok(())
    }

    async fn declare(&self, _: &Subscription) -> Result<()> {
        Ok(())
    }

    async fn consume(&self, _: &Subscription, _: usize) -> Result<Box<dyn Consumer>> {
        let next = self.consumers.lock().unwrap().pop();
        next.ok_or_else(|| Error::new(ErrorKind::Unavailable, "no more consumers"))
    }

    async fn depth(&self, _: &Subscription) -> Result<Depth> {
        unreachable!()
    }

    async fn dead_letters(&self, _: &Subscription, _: &DeadLetterFilter, _: usize) -> Result<Peek> {
        unreachable!()
    }

    async fn redrive(&self, _: &Subscription, _: &Redrive) -> Result<u64> {
        unreachable!()
    }

    async fn purge_dead_letters(&self, _: &Subscription) -> Result<u64> {
        unreachable!()
    }

    async fn health(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Double")
    }
}

type Settle = dyn Fn(u64, &Outcome) -> Result<()> + Send + Sync;

/// Notes what was settled and dropped, and answers what a test says.
pub(crate) struct Recorder {
    pub(crate) settled: Mutex<Vec<(u64, Outcome, Instant)>>,
    /// What was dropped, or settled when it was lost.
    pub(crate) abandoned: Mutex<Vec<u64>>,
    pub(crate) renewed: Mutex<Vec<u64>>,
    /// Whether the connection of its deliveries is gone.
    pub(crate) lost: AtomicBool,
    pub(crate) stream: u64,
    settle: Box<Settle>,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(|_, _| Ok(()))
    }

    /// One whose deliveries come by another stream of the same consumer.
    pub(crate) fn of_stream(stream: u64) -> Arc<Self> {
        let mut recorder = Self::new();
        Arc::get_mut(&mut recorder).expect("it is new").stream = stream;
        recorder
    }

    pub(crate) fn with(
        settle: impl Fn(u64, &Outcome) -> Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            settled: Mutex::default(),
            abandoned: Mutex::default(),
            renewed: Mutex::default(),
            lost: AtomicBool::new(false),
            stream: 0,
            settle: Box::new(settle),
        })
    }

    pub(crate) fn deliver(self: &Arc<Self>, tag: u64, envelope: Envelope) -> Delivery {
        Delivery::new(Arc::new(envelope.with_id(tag.to_string())), None, 0, tag, self.clone())
    }

    pub(crate) fn tags(&self) -> Vec<u64> {
        self.settled.lock().unwrap().iter().map(|(tag, ..)| *tag).collect()
    }
}

impl Settler for Recorder {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        if self.is_lost(delivery.tag()) {
            self.abandon(delivery.tag());
            return Confirmation::ready(Err(Error::stale("it came too late")));
        }
        let answer = (self.settle)(delivery.tag(), &outcome);
        self.settled.lock().unwrap().push((delivery.tag(), outcome, Instant::now()));
        Confirmation::ready(answer)
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        self.renewed.lock().unwrap().extend(tags);
        Confirmation::ready(Ok(()))
    }

    fn runs_by_runtime_clock(&self) -> bool {
        true
    }

    fn abandon(&self, tag: u64) {
        self.abandoned.lock().unwrap().push(tag);
    }

    fn is_lost(&self, _: u64) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn stream(&self, _: u64) -> u64 {
        self.stream
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

pub(crate) async fn memory() -> Arc<dyn Broker> {
    anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap()
}

pub(crate) fn work() -> Subscription {
    Subscription::queue("work")
}

pub(crate) fn envelope() -> Envelope {
    Envelope::new("work", "{}")
}

pub(crate) async fn publish(broker: &Arc<dyn Broker>, ids: &[&str]) {
    for id in ids {
        let outgoing = Outgoing::new(Queue::new("work"), envelope().with_id(*id));
        broker.producer().send(outgoing).await.unwrap();
    }
}

/// Starts a worker, and stops it when the sender is used.
pub(crate) async fn stop_with(
    worker: Worker,
) -> (oneshot::Sender<()>, impl Future<Output = Result<Report>>) {
    let running = worker.start().await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(running.run_until(stopped));
    (stop, async move { run.await.unwrap() })
}

/// Waits for virtual time to pass.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
