use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anybroker_core::{
    Confirmation, Confirmer, Declare, Delivery, Envelope, Error, ErrorKind, Hop, Outcome, Result,
    RetryClass, Settler, Subscription,
};
use lapin::Channel;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::acks::{Acks, SETTLING};
use crate::error::BROKER;
use crate::group::{Group, LAST_TIER};
use crate::message::Received;
use crate::publish::{Publishers, Target};
use crate::runs::{Runs, copy_of};
use crate::topology::Helper;

/// Settles the deliveries of one channel. Another epoch has another one, so that a delivery of the
/// former finds its channel gone.
pub(crate) struct ChannelSettler {
    channel: Channel,
    /// Its number among those of its consumer.
    epoch: u64,
    commands: mpsc::UnboundedSender<Command>,
    given_back: mpsc::UnboundedSender<Released>,
    pub(crate) source: Arc<Source>,
    pub(crate) gate: Arc<Gate>,
    /// Of each queue of an ordered group.
    runs: Vec<Arc<Runs>>,
}

/// A delivery is known by the broker's tag, and above it the number of its queue in the group.
const QUEUE_SHIFT: u32 = 48;

pub(crate) const AT_ONCE: Outcome = Outcome::Release { after: Duration::ZERO };

/// A delivery to be given back by a copy. It passes the reader: while that stops to consume, the
/// copy must wait, or it would come right back.
pub(crate) type Released = (Delivery, Confirmer);

/// What the settlers of all epochs of a consumer share.
pub(crate) struct Source {
    pub(crate) subscription: Subscription,
    pub(crate) group: Arc<Group>,
    pub(crate) publishers: Arc<Publishers>,
    /// How many there were.
    pub(crate) epochs: AtomicU64,
    /// Whether `basic.nack` is known not to count as a failure. Until then a copy is stored, which
    /// counts on no version.
    pub(crate) nack_is_free: AtomicBool,
    /// Of which each receiver lets the broker's end wait.
    pub(crate) closing: Weak<watch::Sender<bool>>,
}

/// Counts what a channel handed out, until it hands out no more.
///
/// What is given back by an ordered channel is not sent back at once: it would come again behind
/// the later messages that the channel holds. Instead nothing more is handed out, and the channel
/// is closed when the last handler is done; then all comes back in order.
#[derive(Default)]
pub(crate) struct Gate(Mutex<Passed>);

#[derive(Default)]
struct Passed {
    handed: usize,
    finished: usize,
    shut: bool,
}

enum Command {
    Settle(u64, How, Option<Confirmer>),
    /// Hand out no more, and close when all that was handed out is finished.
    Shut,
    /// Answers when everything before it is written.
    Flush(oneshot::Sender<()>),
    /// Writes everything before it, says so, and writes nothing more until the second is dropped.
    Pause(oneshot::Sender<()>, oneshot::Receiver<()>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Ack,
    /// Back to the queue.
    Nack,
    /// Back to the queue, and counted as a delivery on every version.
    Reject,
    /// Nothing is sent: it comes back when the channel closes.
    Leave,
}

impl Gate {
    /// Whether one more may be handed out.
    pub(crate) fn pass(&self) -> bool {
        let mut passed = self.lock();
        passed.handed += usize::from(!passed.shut);
        !passed.shut
    }

    /// How many are out, as far as their settlement is not written.
    pub(crate) fn outstanding(&self) -> usize {
        let passed = self.lock();
        passed.handed.saturating_sub(passed.finished)
    }

    fn shut(&self) {
        self.lock().shut = true;
    }

    fn finish(&self, count: usize) {
        self.lock().finished += count;
    }

    fn is_done(&self) -> bool {
        let passed = self.lock();
        passed.shut && passed.handed == passed.finished
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Passed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelSettler {
    /// Starts settling on a channel, which is closed when the last delivery is settled or dropped
    /// and the settler is too.
    pub(crate) fn start(
        channel: Channel,
        source: Arc<Source>,
        runs: Vec<Arc<Runs>>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Released>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (given_back, released) = mpsc::unbounded_channel();
        let gate = Arc::new(Gate::default());
        let writer = Writer {
            acks: Acks::new(channel.clone()),
            gate: Arc::clone(&gate),
            source: Arc::clone(&source),
            runs: runs.clone(),
        };
        tokio::spawn(writer.run(receiver));
        let epoch = source.epochs.fetch_add(1, Ordering::Relaxed);
        let settler = Self { channel, epoch, commands, given_back, source, gate, runs };
        (Arc::new(settler), released)
    }

    /// A delivery of this channel that came back so often, from this of the group's queues.
    pub(crate) fn delivery(
        self: &Arc<Self>,
        received: Received,
        returned: u32,
        queue: usize,
        tag: u64,
    ) -> Delivery {
        let settler = Arc::clone(self) as _;
        let tag = (queue as u64) << QUEUE_SHIFT | tag;
        Delivery::new(Arc::new(received.envelope), received.hop, returned, tag, settler)
    }

    /// Hands out no more; see [`Gate`].
    pub(crate) fn shut(&self) {
        self.gate.shut();
        // Gone means closed already.
        let _ = self.commands.send(Command::Shut);
    }

    /// Resolves when what was settled so far is written.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = flushed.await;
        }
    }

    /// Writes what was settled so far, and holds back the rest until what is answered is dropped.
    pub(crate) async fn pause(&self) -> oneshot::Sender<()> {
        let ((done, paused), (resume, resumed)) = (oneshot::channel(), oneshot::channel());
        if self.commands.send(Command::Pause(done, resumed)).is_ok() {
            let _ = paused.await;
        }
        resume
    }

    fn write(&self, tag: u64, how: How) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        match self.commands.send(Command::Settle(tag, how, Some(confirmer))) {
            Ok(()) => confirmation,
            Err(_) => Confirmation::ready(Err(stale())),
        }
    }

    /// Gives back a delivery of an ordered group to its place.
    fn give_back(&self, delivery: &Delivery) -> Confirmation {
        if let Some(runs) = self.runs_of(delivery.tag()) {
            let (id, run) = copy_of(delivery);
            runs.leave_after(id, run);
        }
        self.leave(delivery.tag());
        Confirmation::ready(Ok(()))
    }

    fn leave(&self, tag: u64) {
        self.gate.shut();
        // Gone means that the channel is closed, and the message back already.
        let _ = self.commands.send(Command::Settle(native(tag), How::Leave, None));
    }

    fn runs_of(&self, tag: u64) -> Option<&Arc<Runs>> {
        self.runs.get(usize::try_from(tag >> QUEUE_SHIFT).ok()?)
    }

    /// Stores a copy, and acknowledges the original only when the broker has it.
    pub(crate) fn replace(&self, delivery: &Delivery, outcome: &Outcome, confirmer: Confirmer) {
        if !self.channel.status().connected() {
            return confirmer.confirm(Err(stale()));
        }
        let source = Arc::clone(&self.source);
        let Some(mut hop) = Hop::after(delivery, outcome, &source.subscription) else { return };
        if *outcome == AT_ONCE {
            // A message that is given back unseen may be one that is not due yet.
            hop.not_before = delivery.hop().not_before;
        }
        let envelope = Envelope::clone(delivery.envelope());
        let stored = match outcome {
            Outcome::Retry { after } | Outcome::Release { after } => {
                source.store_delayed(envelope, hop, *after)
            }
            _ => {
                let target = Target::queue(&source.group, &source.group.dead_letters());
                source.store(target, envelope, hop)
            }
        };
        let (commands, gate) = (self.commands.clone(), Arc::clone(&self.gate));
        let tag = native(delivery.tag());
        // Only an error needs it.
        let ordered =
            self.runs_of(delivery.tag()).map(|runs| (Arc::clone(runs), copy_of(delivery)));
        tokio::spawn(async move {
            match stored.await {
                Ok(()) => {
                    let command = Command::Settle(tag, How::Ack, Some(confirmer));
                    if let Err(mpsc::error::SendError(Command::Settle(_, _, Some(confirmer)))) =
                        commands.send(command)
                    {
                        confirmer.confirm(Err(stale()));
                    }
                }
                Err(error) => {
                    let back = if let Some((runs, (id, earlier))) = ordered {
                        runs.leave_after(id, earlier + 1);
                        gate.shut();
                        How::Leave
                    } else if error.retry_class() == RetryClass::Permanent {
                        // Counted, or a settlement that always fails would repeat its message for
                        // ever.
                        How::Reject
                    } else {
                        How::Nack
                    };
                    let _ = commands.send(Command::Settle(tag, back, None));
                    let is_closed = error.kind() == ErrorKind::Closed;
                    confirmer.confirm(Err(if is_closed { stale() } else { error }));
                }
            }
        });
    }
}

/// A queue's tier for a delay, or itself for less than a second: what comes early waits where it
/// is received.
pub(crate) fn delayed(group: &Arc<Group>, envelope: &Envelope, after: Duration) -> Result<Target> {
    let queue = group.queue_for(envelope.key.as_deref(), &envelope.id);
    let Some(power) = power(after) else { return Target::queue(group, queue) };
    Target::helper(group, Helper::Tier { target: queue.to_owned(), power })
}

/// The longest tier that is not longer.
pub(crate) fn power(after: Duration) -> Option<u32> {
    after.as_secs().checked_ilog2().map(|power| power.min(LAST_TIER))
}

/// For how long the process keeps a message at once where there are no delay queues.
const LONGEST_STEP: Duration = Duration::from_secs(4);

impl Source {
    fn store(&self, target: Result<Target>, envelope: Envelope, hop: Hop) -> Confirmation {
        match target {
            Ok(target) => self.publishers.send(target, envelope, hop),
            Err(error) => Confirmation::ready(Err(error)),
        }
    }

    fn store_delayed(
        self: &Arc<Self>,
        envelope: Envelope,
        hop: Hop,
        after: Duration,
    ) -> Confirmation {
        if self.publishers.topology.settings.options.declare == Declare::Create {
            return self.store(delayed(&self.group, &envelope, after), envelope, hop);
        }
        let (confirmer, confirmation) = Confirmation::channel();
        let source = Arc::clone(self);
        tokio::spawn(async move {
            confirmer.confirm(source.store_where_there_is_room(envelope, hop, after).await);
        });
        confirmation
    }

    /// Stores a copy in the longest delay queue that somebody has declared. Where there is none, a
    /// part of the wait passes first; what is early when it is received waits again. Either way its
    /// attempts are stored with it.
    async fn store_where_there_is_room(
        &self,
        envelope: Envelope,
        hop: Hop,
        after: Duration,
    ) -> Result<()> {
        let queue = self.group.queue_for(envelope.key.as_deref(), &envelope.id);
        let tiers = self.publishers.topology.tiers(queue).await?;
        let longest = power(after)
            .and_then(|longest| tiers.iter().copied().filter(|power| *power <= longest).max());
        let target = match longest {
            Some(power) => {
                Target::helper(&self.group, Helper::Tier { target: queue.to_owned(), power })
            }
            None => {
                sleep(after.min(LONGEST_STEP)).await;
                Target::queue(&self.group, queue)
            }
        };
        self.publishers.send(target?, envelope, hop).await
    }
}

impl Settler for ChannelSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let at_once = outcome == AT_ONCE;
        if outcome == Outcome::Ack {
            return self.write(native(delivery.tag()), How::Ack);
        } else if at_once && self.source.group.ordered {
            return self.give_back(&delivery);
        } else if at_once && self.source.nack_is_free.load(Ordering::Relaxed) {
            return self.write(native(delivery.tag()), How::Nack);
        }
        let (confirmer, confirmation) = Confirmation::channel();
        if !at_once {
            self.replace(&delivery, &outcome, confirmer);
        } else if let Err(mpsc::error::SendError((delivery, confirmer))) =
            self.given_back.send((delivery, confirmer))
        {
            self.replace(&delivery, &outcome, confirmer);
        }
        confirmation
    }

    fn is_lost(&self, _: u64) -> bool {
        !self.channel.status().connected()
    }

    fn stream(&self, _: u64) -> u64 {
        self.epoch
    }

    fn abandon(&self, tag: u64) {
        if self.source.group.ordered {
            if let Some(runs) = self.runs_of(tag) {
                runs.leave_dropped();
            }
            self.leave(tag);
        } else {
            // Gone means that the channel is closed, and the message back already.
            let _ = self.commands.send(Command::Settle(tag, How::Reject, None));
        }
    }
}

impl fmt::Debug for ChannelSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSettler")
            .field("group", &self.source.group.stored)
            .finish_non_exhaustive()
    }
}

/// The task that writes settlements.
struct Writer {
    acks: Acks,
    gate: Arc<Gate>,
    source: Arc<Source>,
    runs: Vec<Arc<Runs>>,
}

/// How many settlements are taken at once: about as many as one acknowledgement covers at best.
const BATCH: usize = 256;

impl Writer {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut flushed = Vec::new();
        let (mut ended, mut closing) = (false, None);
        while commands.recv_many(&mut batch, BATCH).await > 0 {
            let mut finished = 0;
            for command in batch.drain(..) {
                match command {
                    Command::Settle(tag, how, confirmer) => {
                        finished += 1;
                        self.acks.finish(tag, how, confirmer);
                    }
                    Command::Shut => {}
                    Command::Flush(done) => flushed.push(done),
                    Command::Pause(paused, resumed) => {
                        self.gate.finish(std::mem::take(&mut finished));
                        self.acks.flush(true).await;
                        // Who paused may be gone, which resumes as well.
                        let _ = paused.send(());
                        let _ = resumed.await;
                    }
                }
            }
            self.gate.finish(finished);
            if self.gate.is_done() {
                // Before the last settlement is confirmed: the broker may be closed right after.
                closing = self.source.closing.upgrade().map(|closing| closing.subscribe());
            }
            // More is waiting, and may fill the gaps.
            let all = commands.is_empty() || !flushed.is_empty();
            let alive = self.acks.flush(all).await;
            for done in flushed.drain(..) {
                // Who asked may be gone.
                let _ = done.send(());
            }
            ended = self.gate.is_done();
            if !alive || ended {
                ended &= alive;
                break;
            }
        }
        // From here on every settlement is too late.
        commands.close();
        while let Some(command) = commands.recv().await {
            if let Command::Settle(_, _, Some(confirmer)) = command {
                confirmer.confirm(Err(stale()));
            }
        }
        if self.runs.is_empty() {
            drop(closing);
            sleep(SETTLING).await;
        } else {
            sleep(SETTLING).await;
            // Last of all: what comes until the channel closes comes back, and of what came before
            // this it is written that no handler saw it.
            if ended {
                for runs in &self.runs {
                    runs.end().await;
                }
            }
            drop(closing);
        }
        self.acks.close().await;
    }
}

fn native(tag: u64) -> u64 {
    tag & ((1 << QUEUE_SHIFT) - 1)
}

pub(crate) fn stale() -> Error {
    Error::stale("the channel of the delivery is closed; the message comes again")
        .broker(BROKER)
        .operation("settle")
}
