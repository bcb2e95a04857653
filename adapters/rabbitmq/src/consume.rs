use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::adapter::{LONGEST_ALONE, pause, suspicious};
use anybroker_core::{
    Consumer, Delivery, Error, ErrorKind, Inbox, InboxSender, Outcome, Result, RetryClass,
    Subscription,
};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, message};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::{error_of, failed};
use crate::message::{property, read};
use crate::publish::Publishers;
use crate::settle::{ChannelSettler, Released, Source};
use crate::topology::{Place, Topology, short};

/// Declares the group and consumes its queues, in each epoch anew.
pub(crate) async fn consume(
    topology: Arc<Topology>,
    publishers: Arc<Publishers>,
    closing: watch::Receiver<bool>,
    subscription: &Subscription,
    prefetch: usize,
) -> Result<Box<dyn Consumer>> {
    let group = topology.group(subscription)?;
    let reader = Reader {
        topology,
        prefetch,
        suspicious: suspicious(subscription, SUSPECT),
        source: Arc::new(Source {
            subscription: subscription.clone(),
            group,
            publishers,
            nack_is_free: AtomicBool::new(false),
        }),
    };
    let epoch = reader.open().await?;
    let (sender, inbox) = Inbox::channel(prefetch);
    tokio::spawn(reader.run(epoch, sender, closing));
    Ok(Box::new(inbox))
}

const RELEASE: Outcome = Outcome::Release { after: Duration::ZERO };

/// From which return on, or earlier near its limit, a message may be the one that kills its process.
/// Those behind it come back as often; so a consumer begins with one message at a time, and widens
/// its window when one comes that is no suspect, or one takes longer than [`LONGEST_ALONE`]. What
/// kills then, kills alone.
const SUSPECT: u32 = 2;

/// After so many messages in a row, and with a window that the pause cannot exhaust, the reader
/// sleeps for so long instead of being woken for the next one.
const BURST: u32 = 32;
const WIDE: usize = 128;
const NAP: Duration = Duration::from_millis(1);

/// How long nothing must come before a consumer is cancelled, and how long that may take.
const QUIET: Duration = Duration::from_millis(10);
const LONGEST_END: Duration = Duration::from_secs(2);

/// The task that reads for one consumer.
struct Reader {
    topology: Arc<Topology>,
    prefetch: usize,
    /// See [`SUSPECT`].
    suspicious: u32,
    source: Arc<Source>,
}

/// One channel, with what it consumes.
struct Epoch {
    channel: Channel,
    streams: Streams,
    settler: Arc<ChannelSettler>,
    released: mpsc::UnboundedReceiver<Released>,
    /// Whether it receives one message at a time; see [`SUSPECT`].
    narrow: bool,
}

/// What comes from the queues of a group.
struct Streams {
    consumers: Vec<lapin::Consumer>,
    /// Which comes first the next time.
    turn: usize,
}

impl Streams {
    /// The next message; `None` when one of the streams has ended.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<message::Delivery>> {
        let count = self.consumers.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            if let Poll::Ready(next) = self.consumers[self.turn].poll_next_unpin(cx) {
                return Poll::Ready(next.and_then(lapin::Result::ok));
            }
        }
        Poll::Pending
    }
}

/// Why an epoch ended.
enum End {
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
        let Some(count) = self.topology.count(queue).await? else {
            let text = format!("queue {queue:?} does not exist; declare the subscription");
            return Err(error_of(ErrorKind::NotFound, "consume", text));
        };
        let channel = self.topology.link.channel("consume").await?;
        // An empty queue has no suspects; and a second consumer of an ordered one would get nothing.
        let narrow = !group.ordered && self.prefetch > 1 && count > 0;
        let prefetch = if narrow { 1 } else { self.prefetch / group.queues.len() };
        let consumers = self.consume(&channel, prefetch).await?;
        let (settler, released) = ChannelSettler::start(channel.clone(), Arc::clone(&self.source));
        Ok(Epoch { channel, streams: Streams { consumers, turn: 0 }, settler, released, narrow })
    }

    async fn consume(&self, channel: &Channel, prefetch: usize) -> Result<Vec<lapin::Consumer>> {
        let group = &self.source.group;
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX).max(1);
        let lost = |error| failed("consume", &format!("group {:?}", group.stored), error);
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(lost)?;
        let mut consumers = Vec::with_capacity(group.queues.len());
        for queue in &group.queues {
            let options = BasicConsumeOptions::default();
            let consumer =
                channel.basic_consume(short(queue)?, "".into(), options, FieldTable::default());
            consumers.push(consumer.await.map_err(lost)?);
        }
        Ok(consumers)
    }

    /// Adds the rest of the window.
    async fn widen(&self, epoch: &mut Epoch) -> Result<()> {
        let more = self.consume(&epoch.channel, self.prefetch - 1).await?;
        epoch.streams.consumers.extend(more);
        epoch.narrow = false;
        Ok(())
    }

    async fn run(self, mut epoch: Epoch, inbox: InboxSender, mut closing: watch::Receiver<bool>) {
        loop {
            if let End::Closed = self.read(&mut epoch, &inbox, &mut closing).await {
                return self.end(epoch).await;
            }
            epoch.give_back();
            drop(epoch);
            tracing::debug!(group = %self.source.group.stored, "the channel is gone; consuming anew");
            // If somebody deleted the queue, it is to be declared again; but to consume it while it
            // is being deleted would cost the whole connection (541).
            self.topology.forget();
            let mut attempt = 1;
            epoch = loop {
                tokio::select! {
                    () = inbox.closed() => return,
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
                        let _ = inbox.fail(error).await;
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

    async fn read(
        &self,
        epoch: &mut Epoch,
        inbox: &InboxSender,
        closing: &mut watch::Receiver<bool>,
    ) -> End {
        let mut closed = pin!(inbox.closed());
        let mut burst = 0;
        // Until when others wait for a suspect.
        let mut alone = None;
        loop {
            // Before a message is taken: to drop it would count as an attempt.
            if *closing.borrow() {
                return End::Closed;
            }
            let Epoch { streams, settler, released, narrow, .. } = &mut *epoch;
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
                        settler.replace(&delivery, &RELEASE, confirmer);
                        continue;
                    }
                    message = poll_fn(|cx| streams.poll_next(cx)) => {
                        burst = 0;
                        message
                    }
                    () = sleep_until(alone.unwrap_or_else(Instant::now)), if alone.is_some() => {
                        alone = None;
                        let runs = settler.gate.outstanding() > 0;
                        if runs && self.widen(epoch).await.is_err() {
                            return End::Lost;
                        }
                        continue;
                    }
                },
            };
            burst += 1;
            let Some(message) = message else { return End::Lost };
            if !settler.gate.pass() {
                // It comes back when the channel closes, which ends this loop.
                continue;
            }
            let delivery = self.delivery(message, settler);
            let suspect = delivery.unsettled() >= self.suspicious;
            if *narrow && !suspect && self.widen(epoch).await.is_err() {
                return End::Lost;
            }
            alone = epoch.narrow.then(|| Instant::now() + LONGEST_ALONE);
            tokio::select! {
                biased;
                delivered = inbox.deliver(delivery) => if delivered.is_err() {
                    return End::Closed;
                },
                _ = closing.changed() => return End::Closed,
            }
        }
    }

    fn delivery(&self, message: message::Delivery, settler: &Arc<ChannelSettler>) -> Delivery {
        let default_type = self.source.subscription.destination().name();
        let received = read(&message.properties, message.data.into(), default_type);
        if received.counts_apart {
            self.source.nack_is_free.store(true, Ordering::Relaxed);
        }
        Delivery::new(
            Arc::new(received.envelope),
            received.hop,
            received.returned,
            message.delivery_tag,
            Arc::clone(settler) as _,
        )
    }

    fn hold(&self, message: message::Delivery, settler: &Arc<ChannelSettler>) -> Delivery {
        settler.gate.pass();
        self.delivery(message, settler)
    }

    /// Stops receiving, and gives back what was not handed out.
    async fn end(&self, mut epoch: Epoch) {
        if self.source.group.ordered {
            // Cancelled, the next consumer would get later messages at once. Closing the channel
            // gives all back in order.
            epoch.settler.shut();
            epoch.settler.flush().await;
            // Dropped, the client's consumer would cancel itself.
            let Epoch { mut streams, .. } = epoch;
            tokio::spawn(
                async move { while poll_fn(|cx| streams.poll_next(cx)).await.is_some() {} },
            );
            return;
        }
        // What is on its way when the consumer is cancelled would come for nobody, and count as an
        // attempt when the channel closes. While nothing is settled, nothing is on its way as soon
        // as the window is full, or the queue empty: then nothing comes for a while.
        let paused = epoch.settler.pause().await;
        let mut held = Vec::new();
        let Epoch { channel, streams, settler, narrow, .. } = &mut epoch;
        let window = if *narrow { 1 } else { self.prefetch };
        let end = Instant::now() + LONGEST_END;
        while settler.gate.outstanding() < window && Instant::now() < end {
            match timeout(QUIET, poll_fn(|cx| streams.poll_next(cx))).await {
                Ok(Some(message)) => held.push(self.hold(message, settler)),
                Ok(None) | Err(_) => break,
            }
        }
        // The queue answers a get after all that it sent before, and the channel a second question
        // after it has passed that on.
        for queue in &self.source.group.queues {
            let got = channel.basic_get(property(queue), BasicGetOptions::default()).await;
            if let Ok(Some(got)) = got {
                held.push(self.hold(got.delivery, settler));
            }
        }
        let _ = channel.basic_qos(1, BasicQosOptions::default()).await;
        for consumer in &streams.consumers {
            // If it fails, the channel is gone, and with it the consumer.
            let _ = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
        }
        for consumer in &mut streams.consumers {
            while let Some(Ok(message)) = consumer.next().await {
                held.push(self.hold(message, settler));
            }
        }
        drop(paused);
        epoch.give_back();
        let given_back: Vec<_> = held.into_iter().map(|held| held.settle(RELEASE)).collect();
        for confirmation in given_back {
            // What is not released comes back when the channel closes.
            let _ = confirmation.await;
        }
        epoch.settler.flush().await;
    }
}

impl Epoch {
    /// Stores the copies that waited; those to come do not wait any more.
    fn give_back(&mut self) {
        self.released.close();
        while let Ok((delivery, confirmer)) = self.released.try_recv() {
            self.settler.replace(&delivery, &RELEASE, confirmer);
        }
    }
}

/// Whether opening the consumer again cannot help.
fn is_final(error: &Error) -> bool {
    // After a restart, a queue may not be found for a while.
    error.retry_class() == RetryClass::Permanent && error.kind() != ErrorKind::NotFound
}
