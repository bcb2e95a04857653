use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::adapter::{LONGEST_ALONE, pause};
use anybroker_core::{
    Consumer, Declare, Delivery, Error, ErrorKind, Inbox, InboxSender, Result, RetryClass,
    Subscription,
};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, message};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{error_of, failed};
use crate::link::{apart, while_open};
use crate::message::{Received, property, read};
use crate::publish::Publishers;
use crate::runs::Runs;
use crate::settle::{AT_ONCE, ChannelSettler, Released, Source};
use crate::suspicion::Suspicion;
use crate::topology::{Place, Topology, short};

/// Declares the group and consumes its queues, in each epoch anew.
pub(crate) async fn consume(
    topology: Arc<Topology>,
    publishers: Arc<Publishers>,
    closing: &Arc<watch::Sender<bool>>,
    subscription: &Subscription,
    prefetch: usize,
) -> Result<Box<dyn Consumer>> {
    let group = topology.group(subscription)?;
    let (sender, inbox) = Inbox::channel(prefetch);
    let reader = Reader {
        inbox: sender,
        topology,
        prefetch,
        suspicion: Suspicion::of(subscription),
        source: Arc::new(Source {
            subscription: subscription.clone(),
            group,
            publishers,
            epochs: AtomicU64::new(0),
            nack_is_free: AtomicBool::new(false),
            closing: Arc::downgrade(closing),
        }),
    };
    let closing = closing.subscribe();
    // Not to be cut off: what was consumed already would count as an attempt.
    apart(async move {
        let epoch = reader.open().await?;
        tokio::spawn(reader.run(epoch, closing));
        Ok(Box::new(inbox) as Box<dyn Consumer>)
    })
    .await
}

/// After so many messages in a row, and with a window that the pause cannot exhaust, the reader
/// sleeps for so long instead of being woken for the next one.
const BURST: u32 = 32;
const WIDE: usize = 128;
const NAP: Duration = Duration::from_millis(1);

/// The task that reads for one consumer.
pub(crate) struct Reader {
    topology: Arc<Topology>,
    pub(crate) prefetch: usize,
    pub(crate) suspicion: Suspicion,
    pub(crate) source: Arc<Source>,
    pub(crate) inbox: InboxSender,
}

/// One channel, with what it consumes.
pub(crate) struct Epoch {
    pub(crate) channel: Channel,
    pub(crate) streams: Streams,
    pub(crate) settler: Arc<ChannelSettler>,
    pub(crate) released: mpsc::UnboundedReceiver<Released>,
    /// Whether it receives one message at a time; see [`Suspicion`].
    pub(crate) narrow: bool,
    /// Of each queue of an ordered group.
    pub(crate) runs: Vec<Arc<Runs>>,
}

/// What comes from the queues of a group.
pub(crate) struct Streams {
    pub(crate) consumers: Vec<lapin::Consumer>,
    /// Which brought something last; the others come first the next time.
    pub(crate) turn: usize,
}

impl Streams {
    /// The next message; `None` when one of the streams has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<message::Delivery>> {
        let count = self.consumers.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            if let Poll::Ready(next) = self.consumers[self.turn].poll_next_unpin(cx) {
                return Poll::Ready(next.and_then(lapin::Result::ok));
            }
        }
        Poll::Pending
    }

    /// Lets an ordered group's messages come until the channel closes, which gives all of them back
    /// in order: of what is cancelled, the next consumer would get later messages at once. Dropped
    /// before its channel is closed, a consumer of the client cancels itself.
    fn leave(self, runs: &[Arc<Runs>]) {
        for (mut consumer, runs) in self.consumers.into_iter().zip(runs.to_vec()) {
            tokio::spawn(async move {
                while let Some(Ok(_)) = consumer.next().await {
                    runs.leave();
                }
            });
        }
    }
}

/// Why an epoch ended.
pub(crate) enum End {
    /// The channel, or what it consumed, is gone.
    Lost,
    /// The consumer or the broker was closed.
    Closed,
}

impl Reader {
    async fn open(&self) -> Result<Epoch> {
        let group = &self.source.group;
        self.topology.ensure_place(&Place::Group(Arc::clone(group))).await?;
        let queue = group.queues.first().unwrap_or(&group.stored);
        let dead_letters = group.dead_letters();
        let mut needed = vec![queue];
        if self.topology.settings.options.declare == Declare::Off {
            // Nobody has looked. Without it, what is given up would be handled again for ever.
            needed = group.queues.iter().chain([&dead_letters]).collect();
        }
        let mut waiting = 0;
        for queue in needed {
            let Some(count) = self.topology.count(queue).await? else {
                let text = format!("queue {queue:?} does not exist; declare the subscription");
                return Err(error_of(ErrorKind::NotFound, "consume", text));
            };
            waiting += if *queue == dead_letters { 0 } else { count };
        }
        let channel = self.topology.link.channel("consume").await?;
        // An empty queue has no suspects; and a second consumer of an ordered one would get nothing.
        let narrow = !group.ordered && self.prefetch > 1 && waiting > 0;
        let prefetch = if narrow { 1 } else { self.prefetch / group.queues.len() };
        let consumers = self.consume(&channel, prefetch);
        let consumers = while_open("consume", &channel, consumers).await?;
        let streams = Streams { consumers, turn: 0 };
        let runs = |queue: &String| Arc::new(Runs::new(&self.source.publishers, group, queue));
        let runs: Vec<_> =
            if group.ordered { group.queues.iter().map(runs).collect() } else { Vec::new() };
        let (settler, released) =
            ChannelSettler::start(channel.clone(), Arc::clone(&self.source), runs.clone());
        Ok(Epoch { channel, streams, settler, released, narrow, runs })
    }

    pub(crate) async fn consume(
        &self,
        channel: &Channel,
        prefetch: usize,
    ) -> Result<Vec<lapin::Consumer>> {
        let group = &self.source.group;
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX).max(1);
        let lost = |error| failed("consume", &format!("group {:?}", group.stored), error);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(lost)?;
        let mut consumers = Vec::with_capacity(group.queues.len());
        for queue in &group.queues {
            let options = BasicConsumeOptions::default();
            // It names the queue in what the log and the broker say of a consumer. The number comes
            // first, since the end of a long name is cut off.
            let tag = property(&format!("{:08x}.{queue}", fastrand::u32(..)));
            let consumer =
                channel.basic_consume(short(queue)?, tag, options, FieldTable::default());
            consumers.push(consumer.await.map_err(lost)?);
        }
        Ok(consumers)
    }

    async fn run(self, mut epoch: Epoch, mut closing: watch::Receiver<bool>) {
        loop {
            if let End::Closed = self.read(&mut epoch, &mut closing).await {
                return self.end(epoch).await;
            }
            epoch.give_back();
            epoch.end();
            tracing::debug!(group = %self.source.group.stored, "the channel is gone; consuming anew");
            // If somebody deleted the queue, it is to be declared again; but to consume it while it
            // is being deleted would cost the whole connection (541).
            self.topology.forget();
            let mut attempt = 1;
            epoch = loop {
                tokio::select! {
                    () = self.inbox.closed() => return,
                    _ = closing.changed() => return,
                    connected = async {
                        pause(attempt).await;
                        self.topology.link.connection("consume").await
                    } => if connected.is_err() {
                        return;
                    }
                }
                // Not to be cut off: what was consumed already would count as an attempt.
                match self.open().await {
                    Ok(epoch) => break epoch,
                    Err(error) if is_final(&error) => {
                        // The worker opens another consumer, and learns more then.
                        let _ = self.inbox.fail(error).await;
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, group = %self.source.group.stored, "consuming failed");
                        attempt += 1;
                    }
                }
            };
        }
    }

    async fn read(&self, epoch: &mut Epoch, closing: &mut watch::Receiver<bool>) -> End {
        let mut closed = pin!(self.inbox.closed());
        let mut burst = 0;
        // Until when others wait for a suspect.
        let mut alone = None;
        loop {
            // Before a message is taken: to drop it would count as an attempt.
            if *closing.borrow() {
                return End::Closed;
            }
            let Epoch { streams, settler, released, .. } = &mut *epoch;
            // While many come, there mostly is one, and nothing else needs to be looked at.
            let ready = if released.is_empty() {
                poll_fn(|cx| streams.poll_next(cx)).now_or_never()
            } else {
                None
            };
            let message = match ready {
                Some(message) => message,
                None if burst >= BURST && self.prefetch >= WIDE => {
                    // Waking a task costs more than a message: asleep for a moment, it finds many.
                    burst = 0;
                    sleep(NAP).await;
                    continue;
                }
                None => tokio::select! {
                    biased;
                    () = &mut closed => return End::Closed,
                    _ = closing.changed() => return End::Closed,
                    Some((delivery, confirmer)) = released.recv() => {
                        settler.replace(&delivery, &AT_ONCE, confirmer);
                        continue;
                    }
                    message = poll_fn(|cx| streams.poll_next(cx)) => {
                        burst = 0;
                        message
                    }
                    () = sleep_until(alone.unwrap_or_else(Instant::now)), if alone.is_some() => {
                        alone = None;
                        let runs = settler.gate.outstanding() > 0;
                        if runs && let Err(end) = self.widen(epoch).await {
                            return end;
                        }
                        continue;
                    }
                },
            };
            burst += 1;
            let Some(message) = message else { return End::Lost };
            let passed = if self.source.group.ordered {
                self.pass_in_order(epoch, message, closing).await
            } else {
                self.pass(epoch, message, closing).await
            };
            if let Err(end) = passed {
                return end;
            }
            alone = epoch.narrow.then(|| Instant::now() + LONGEST_ALONE);
        }
    }

    /// Hands out a message of an unordered queue.
    async fn pass(
        &self,
        epoch: &mut Epoch,
        message: message::Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        let delivery = self.hold(message, &epoch.settler);
        let (returns, suspicion) = (delivery.unsettled(), self.suspicion);
        if epoch.narrow && returns < suspicion.narrow {
            self.widen(epoch).await?;
        } else if !epoch.narrow && returns >= suspicion.wide && self.prefetch > 1 {
            return self.narrow(epoch, delivery, closing).await;
        }
        self.deliver(delivery, closing).await
    }

    pub(crate) async fn deliver(
        &self,
        delivery: Delivery,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        tokio::select! {
            biased;
            delivered = self.inbox.deliver(delivery) => delivered.map_err(|_| End::Closed),
            _ = closing.changed() => Err(End::Closed),
        }
    }

    pub(crate) fn received(&self, message: message::Delivery) -> (Received, u64) {
        let default_type = self.source.subscription.destination().name();
        let tag = message.delivery_tag;
        let received = read(message, default_type);
        if received.counts_apart {
            self.source.nack_is_free.store(true, Ordering::Relaxed);
        }
        (received, tag)
    }

    /// A delivery of an unordered queue.
    pub(crate) fn hold(
        &self,
        message: message::Delivery,
        settler: &Arc<ChannelSettler>,
    ) -> Delivery {
        settler.gate.pass();
        let (received, tag) = self.received(message);
        let returned = received.returned;
        settler.delivery(received, returned, 0, tag)
    }

    /// Stops receiving, and gives back what was not handed out.
    async fn end(&self, mut epoch: Epoch) {
        if self.source.group.ordered {
            // What has come already is known to come back before the last settlement ends the
            // channel.
            while let Some(Some(_)) = poll_fn(|cx| epoch.streams.poll_next(cx)).now_or_never() {
                epoch.runs[epoch.streams.turn].leave();
            }
            epoch.settler.shut();
            epoch.settler.flush().await;
            let Epoch { streams, runs, .. } = epoch;
            return streams.leave(&runs);
        }
        let held = self.stop(&mut epoch).await;
        epoch.give_back();
        let given_back: Vec<_> = held.into_iter().map(|held| held.settle(AT_ONCE)).collect();
        for confirmation in given_back {
            // What is not released comes back when the channel closes.
            let _ = confirmation.await;
        }
        epoch.settler.flush().await;
    }
}

impl Epoch {
    /// Ends what its channel consumed, which may be gone.
    fn end(self) {
        if !self.runs.is_empty() {
            self.streams.leave(&self.runs);
        }
    }

    /// Stores the copies that waited; those to come do not wait any more.
    fn give_back(&mut self) {
        self.released.close();
        while let Ok((delivery, confirmer)) = self.released.try_recv() {
            self.settler.replace(&delivery, &AT_ONCE, confirmer);
        }
    }
}

/// Whether opening the consumer again cannot help.
fn is_final(error: &Error) -> bool {
    // After a restart, a queue may not be found for a while.
    error.retry_class() == RetryClass::Permanent && error.kind() != ErrorKind::NotFound
}
