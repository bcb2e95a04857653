use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Delivery, ErrorKind, Outcome, RetryClass, Settler, Subscription, now,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::case::Checked;
use super::lab::{PATIENCE, sorted};

/// A consumer that waits with deadlines, and keeps a delivery that came before its time until
/// then, as the worker does.
pub(super) struct Receiver {
    consumer: Box<dyn Consumer>,
    early: Vec<(Instant, Delivery)>,
}

impl Receiver {
    pub(super) async fn open(
        broker: &Arc<dyn Broker>,
        subscription: &Subscription,
        prefetch: usize,
    ) -> Checked<Self> {
        let consumer = broker.consume(subscription, prefetch).await?;
        Ok(Self { consumer, early: Vec::new() })
    }

    /// The next delivery.
    pub(super) async fn next(&mut self) -> Checked<Delivery> {
        let delivery = self.within(PATIENCE).await?;
        delivery.ok_or_else(|| format!("no delivery within {PATIENCE:?}").into())
    }

    /// The next deliveries, this many.
    pub(super) async fn take(&mut self, count: usize) -> Checked<Vec<Delivery>> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let next = self.within(PATIENCE).await?;
            let next = next
                .ok_or_else(|| format!("{} of {count} deliveries came: {taken:?}", taken.len()))?;
            taken.push(next);
        }
        Ok(taken)
    }

    /// Receives and acknowledges this many; answers them by id.
    pub(super) async fn ack(&mut self, count: usize) -> Checked<Vec<String>> {
        let (mut ids, mut settled) = (Vec::with_capacity(count), Vec::with_capacity(count));
        while ids.len() < count {
            let next = self.within(PATIENCE).await?;
            let delivery =
                next.ok_or_else(|| format!("{} of {count} deliveries came", ids.len()))?;
            ids.push(delivery.envelope().id.clone());
            settled.push(delivery.settle(Outcome::Ack));
        }
        for confirmation in settled {
            confirmation.await?;
        }
        Ok(sorted(ids))
    }

    /// Proves that nothing comes for a while.
    pub(super) async fn quiet(&mut self, time: Duration) -> Checked {
        match self.within(time).await? {
            None => Ok(()),
            Some(delivery) => Err(format!("nothing should have come, but {delivery:?} did").into()),
        }
    }

    /// The next delivery that is due within this time.
    pub(super) async fn within(&mut self, time: Duration) -> Checked<Option<Delivery>> {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            if let Some(index) = self.early.iter().position(|(due, _)| *due <= now) {
                return Ok(Some(self.early.swap_remove(index).1));
            }
            if now >= end {
                return Ok(None);
            }
            let wake = self.early.iter().map(|(due, _)| *due).min().map_or(end, |due| due.min(end));
            tokio::select! {
                received = self.receive() => if let Some(delivery) = received? {
                    return Ok(Some(delivery));
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Takes one from the consumer; answers it when it is due.
    async fn receive(&mut self) -> Checked<Option<Delivery>> {
        let mut out = Vec::new();
        if let Err(error) = poll_fn(|cx| self.consumer.poll_receive(cx, 1, &mut out)).await {
            let ends =
                error.kind() == ErrorKind::Closed || error.retry_class() == RetryClass::Permanent;
            return if ends { Err(error.into()) } else { Ok(None) };
        }
        let Some(delivery) = out.pop() else { return Ok(None) };
        match delivery.hop().not_before.and_then(|at| at.duration_since(now()).ok()) {
            Some(wait) => self.early.push((Instant::now() + wait, delivery)),
            None => return Ok(Some(delivery)),
        }
        Ok(None)
    }

    /// Changes how many deliveries may be unsettled.
    pub(super) fn set_prefetch(&mut self, prefetch: usize) {
        self.consumer.set_prefetch(prefetch);
    }

    /// Who renews, and for how long.
    pub(super) fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        self.consumer.lease()
    }

    /// The consumer itself; what the receiver held comes back.
    pub(super) fn into_consumer(self) -> Box<dyn Consumer> {
        self.consumer
    }

    /// Closes the consumer and waits for it.
    pub(super) async fn close(self) -> Checked {
        drop(self.early);
        timeout(PATIENCE, self.consumer.close())
            .await
            .map_err(|_elapsed| format!("the consumer did not close within {PATIENCE:?}"))??;
        Ok(())
    }
}

/// Settles all deliveries in one way and waits for each confirmation.
pub(super) async fn settle_all(deliveries: Vec<Delivery>, outcome: &Outcome) -> Checked {
    let settled: Vec<_> =
        deliveries.into_iter().map(|delivery| delivery.settle(outcome.clone())).collect();
    for confirmation in settled {
        confirmation.await?;
    }
    Ok(())
}
