use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::adapter::{Background, LONGEST_ALONE, suspicious};
use anybroker_core::{
    Backoff, Consumer, Declare, Delivery, Inbox, InboxSender, Jitter, Outcome, Result, RetryClass,
    Settler, Subscription, now,
};
use async_trait::async_trait;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName as Name};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::held::Held;
use crate::message;
use crate::places::Places;
use crate::senders::{Alive, Senders};
use crate::settler::SqsSettler;
use crate::topology::Topology;

const RECEIVE: &str = "receive";

/// The most messages of one receive.
const BATCH: usize = 10;

/// Receives at once, at most, when there is much to receive.
const POLLS: usize = 8;

/// From which return on a message is handed out alone. Those that came back with it are far from the
/// limit then; without one, nobody is given up.
fn alone_from(subscription: &Subscription) -> u32 {
    let of = |limit: u32| suspicious(subscription, (limit / 4).max(2));
    subscription.delivery_limit().map_or(u32::MAX, of)
}

/// After how many polls' time the consumer of a topic's group looks whether it is still subscribed:
/// a minute unless the option `poll` says otherwise.
const POLLS_UNTIL_A_LOOK: u32 = 12;

/// On FIFO the count cannot be told from that of releases, which must not use up attempts: so many
/// returns are forgiven.
const FORGIVEN: u32 = 100;

/// Starts to consume.
pub(crate) async fn consume(
    topology: &Arc<Topology>,
    senders: &Arc<Senders>,
    closing: watch::Receiver<bool>,
    alive: Alive,
    subscription: &Subscription,
    prefetch: usize,
) -> Result<Box<dyn Consumer>> {
    // A topic's group may have lost its subscription, which nobody is told of. A queue that is gone
    // is found missing by the first receive; to ask for it at each opening would make a thousand
    // consumers of one queue ask a thousand times.
    let group = if subscription.destination().is_topic() {
        topology.declare(subscription).await?
    } else {
        topology.group(subscription).await?
    };
    let queue = group.queue;
    let held = Held::new(Arc::clone(topology), Arc::clone(&queue), subscription.lease_time());
    let held = Arc::new(held);
    let settler: Arc<dyn Settler> =
        Arc::new(SqsSettler::start(subscription.clone(), Arc::clone(&held), Arc::clone(senders)));
    let (sender, inbox) = Inbox::channel(Inbox::COUNTED);
    let inbox = inbox.leased(Arc::clone(&settler), held.visibility);
    let (demand, places) = (Arc::new(Demand::default()), Arc::new(Places::new(prefetch)));
    let reader = Reader {
        demand: Arc::clone(&demand),
        topology: Arc::clone(topology),
        queue,
        default_type: subscription.destination().name().to_owned(),
        ordered: subscription.is_ordered(),
        places: Arc::clone(&places),
        held: Arc::clone(&held),
        settler,
        inbox: sender,
        subscription: subscription.clone(),
        waiting: VecDeque::new(),
        careful: true,
        alone: None,
        suspicious: alone_from(subscription),
        wanted: 1,
    };
    tokio::spawn(async move {
        reader.run(closing).await;
        drop(alive);
    });
    Ok(Box::new(SqsConsumer { inbox, held, demand, places }))
}

/// The inbox, and a note of what has left it: from then on the worker renews it.
#[derive(Debug)]
struct SqsConsumer {
    inbox: Inbox,
    held: Arc<Held>,
    demand: Arc<Demand>,
    places: Arc<Places>,
}

/// Whether the consumer waits for deliveries. What is received for one that does not would only
/// be kept from the others of its group.
#[derive(Debug, Default)]
struct Demand {
    waits: AtomicBool,
    stated: Notify,
}

impl Demand {
    fn state(&self) {
        if !self.waits.swap(true, Ordering::Relaxed) {
            self.stated.notify_one();
        }
    }
}

#[async_trait]
impl Consumer for SqsConsumer {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        let before = out.len();
        loop {
            let polled = self.inbox.poll_receive(cx, max, out);
            let received = out.len() - before;
            // What waited here and went back with the one before it.
            self.held.hand_out(out, before);
            if polled.is_pending() {
                self.demand.state();
            } else if received > 0 && out.len() == before {
                continue;
            }
            return polled;
        }
    }

    fn set_prefetch(&mut self, prefetch: usize) {
        self.places.set(prefetch);
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        self.inbox.lease()
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Box::new(self.inbox).close().await
    }
}

/// Receives, and hands over what it received.
struct Reader {
    topology: Arc<Topology>,
    queue: Arc<str>,
    default_type: String,
    ordered: bool,
    places: Arc<Places>,
    held: Arc<Held>,
    settler: Arc<dyn Settler>,
    inbox: InboxSender,
    demand: Arc<Demand>,
    subscription: Subscription,
    /// Received, and not handed over as long as a suspect is out, or is the next one.
    waiting: VecDeque<(Delivery, bool)>,
    /// Whether the last one that was handed over is a suspect, or there was none yet. A crash
    /// counts as an attempt of all that was received, so that a message which ends its process
    /// must be alone then: its neighbours would be given up with it.
    careful: bool,
    /// Since when others wait for a suspect, or it for them.
    alone: Option<Instant>,
    suspicious: u32,
    /// How many receives there should be at once.
    wanted: usize,
}

/// What a receive has brought, the places for it, and when it began.
type Polled = (Result<Vec<Message>>, Vec<OwnedSemaphorePermit>, Instant);

impl Reader {
    async fn run(mut self, mut closing: watch::Receiver<bool>) {
        let mut beside = JoinSet::new();
        Background::enter(|| beside.spawn(renew_waiting(Arc::clone(&self.held))));
        if self.subscription.destination().is_topic() {
            beside.spawn(stay_subscribed(Arc::clone(&self.topology), self.subscription.clone()));
        }
        let mut polls = JoinSet::new();
        let (mut failures, mut paused_until) = (0, Instant::now());
        let inbox = self.inbox.clone();
        let closed = inbox.closed();
        tokio::pin!(closed);
        let held = Arc::clone(&self.held);
        loop {
            let changed = held.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.hand_over(polls.is_empty()).await || *closing.borrow() {
                break;
            }
            let patient = self.is_patient();
            let room = self.demand.waits.load(Ordering::Relaxed)
                && if self.careful && patient {
                    polls.is_empty() && self.held.is_empty()
                } else {
                    polls.len() < self.wanted && self.waiting.is_empty()
                };
            let places = Arc::clone(&self.places);
            tokio::select! {
                biased;
                () = &mut closed => break,
                _ = closing.changed() => break,
                Some(polled) = polls.join_next(), if !polls.is_empty() => {
                    // A receive that panicked has brought nothing.
                    let Ok(polled) = polled else { continue };
                    match self.take_in(polled) {
                        Ok(()) => failures = 0,
                        Err(error) => {
                            tracing::debug!(%error, "receiving failed");
                            let ends = error.retry_class() == RetryClass::Permanent;
                            if ends {
                                self.topology.forget(&self.queue);
                            }
                            if ends || failures == 0 {
                                let told = self.inbox.fail(error).await;
                                if ends || told.is_err() {
                                    break;
                                }
                            }
                            failures += 1;
                            paused_until = Instant::now() + pause(failures);
                        }
                    }
                }
                () = &mut changed, if self.careful || !self.waiting.is_empty() => {}
                () = self.demand.stated.notified() => {}
                () = sleep_until(self.alone.unwrap_or_else(Instant::now) + LONGEST_ALONE),
                    if patient && self.alone.is_some() => {}
                place = async {
                    sleep_until(paused_until).await;
                    places.take().await
                }, if room => {
                    let most = if self.careful && patient { 1 } else { BATCH };
                    polls.spawn(self.poll(place, most));
                }
            }
        }
        let broker_closes = *closing.borrow();
        self.end(polls, broker_closes).await;
        beside.shutdown().await;
    }

    /// Hands over what may go; answers whether the consumer is still there. `quiet` says that no
    /// receive is under way.
    async fn hand_over(&mut self, quiet: bool) -> bool {
        while let Some(&(_, suspect)) = self.waiting.front() {
            if suspect {
                // A crash would count for them too.
                self.give_back_waiting(1);
            }
            if self.out() > 0 && (suspect || self.careful) {
                self.alone.get_or_insert_with(Instant::now);
                if self.is_patient() {
                    return true;
                }
            } else if suspect && !quiet {
                return true;
            }
            let Some((delivery, suspect)) = self.waiting.pop_front() else { return true };
            self.careful = suspect;
            self.alone = suspect.then(Instant::now);
            self.demand.waits.store(false, Ordering::Relaxed);
            if self.inbox.deliver(delivery).await.is_err() {
                return false;
            }
        }
        true
    }

    /// How many are handed out.
    fn out(&self) -> usize {
        self.held.len().saturating_sub(self.waiting.len())
    }

    /// Whether others still are to wait for a suspect, or it for them.
    fn is_patient(&mut self) -> bool {
        if self.out() == 0 {
            self.alone = None;
        }
        self.alone.is_none_or(|since| since.elapsed() < LONGEST_ALONE)
    }

    fn poll(
        &self,
        place: OwnedSemaphorePermit,
        most: usize,
    ) -> impl Future<Output = Polled> + Send + 'static {
        let mut places = vec![place];
        while places.len() < most
            && let Some(place) = self.places.try_take()
        {
            places.push(place);
        }
        let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
        let receive = self
            .topology
            .clients
            .polls
            .receive_message()
            .queue_url(&*self.queue)
            .max_number_of_messages(i32::try_from(places.len()).unwrap_or(1))
            .wait_time_seconds(seconds(self.held.poll()))
            .visibility_timeout(seconds(self.held.visibility))
            .set_message_system_attribute_names(Some(message::READ.to_vec()))
            .message_attribute_names("All");
        let (topology, queue) = (Arc::clone(&self.topology), Arc::clone(&self.queue));
        async move {
            let began = Instant::now();
            match receive.send().await {
                Ok(received) => (Ok(received.messages.unwrap_or_default()), places, began),
                Err(error) => (Err(topology.failed(RECEIVE, &queue, error)), places, began),
            }
        }
    }

    fn take_in(&mut self, (received, mut places, began): Polled) -> Result<()> {
        let asked = places.len();
        let messages = match received {
            Ok(messages) => messages,
            Err(error) => {
                self.wanted = 1;
                return Err(error);
            }
        };
        // More at once as long as they come back full, one alone when there is nothing.
        self.wanted = match messages.len() {
            0 => 1,
            count if count >= asked => (self.wanted * 2).min(POLLS),
            _ => self.wanted,
        };
        for message in messages {
            let Some(place) = places.pop() else { break };
            let next = self.delivery(&message, place, began);
            self.waiting.push_back(next);
        }
        Ok(())
    }

    /// A delivery, and whether it is suspected to end its process.
    fn delivery(
        &self,
        message: &Message,
        place: OwnedSemaphorePermit,
        began: Instant,
    ) -> (Delivery, bool) {
        let (envelope, hop) =
            message::read(message, &self.default_type, &self.topology.clients.clock);
        let mut returned = message::receive_count(message).saturating_sub(1);
        if self.ordered {
            returned = returned.saturating_sub(FORGIVEN);
        }
        // What comes before its time was not handled, however often it did.
        if hop.as_ref().and_then(|hop| hop.not_before).is_some_and(|due| due > now()) {
            returned = 0;
        }
        let group = message::attribute(message, &Name::MessageGroupId);
        let group = group.filter(|_| self.ordered).map(ToOwned::to_owned);
        let receipt = message.receipt_handle().unwrap_or_default().into();
        let tag = self.held.insert(receipt, group, place, began);
        let envelope = Arc::new(envelope);
        let delivery = Delivery::new(envelope, hop, returned, tag, Arc::clone(&self.settler));
        let suspect = delivery.unsettled() >= self.suspicious;
        (delivery, suspect)
    }

    /// Gives back, uncounted, what waits from this place on. It is under way then: in
    /// [`Held::settled`] it ends.
    fn give_back_waiting(&mut self, from: usize) {
        for (delivery, _) in self.waiting.drain(from..) {
            drop(delivery.settle(Outcome::Release { after: Duration::ZERO }));
        }
    }

    /// Gives back what was not handed over, and ends when what was settled is with the broker.
    ///
    /// It waits for the receives under way: one that is cut off may still take messages with it,
    /// which then wait for the end of a lease that nobody holds.
    async fn end(mut self, mut polls: JoinSet<Polled>, broker_closes: bool) {
        self.give_back_waiting(0);
        while let Some(polled) = polls.join_next().await {
            // A receive that failed has brought nothing.
            if let Ok(polled) = polled {
                let _ = self.take_in(polled);
            }
            self.give_back_waiting(0);
        }
        self.held.settled().await;
        if broker_closes {
            self.held.close().await;
        }
    }
}

/// Renews what waits, as the worker renews what it has.
async fn renew_waiting(held: Arc<Held>) {
    let every = held.visibility / 3;
    let mut tick = interval_at(Instant::now() + every, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        held.renew_waiting().await;
    }
}

/// Looks from time to time whether the group still gets what is published. Somebody may delete its
/// subscription, or its topic, and then also make the topic again: the queue stays and answers, and
/// nothing else would tell a consumer that nothing comes any more.
async fn stay_subscribed(topology: Arc<Topology>, subscription: Subscription) {
    if topology.settings.options.declare == Declare::Off {
        return;
    }
    let mut failed = false;
    loop {
        let every = topology.settings.poll * POLLS_UNTIL_A_LOOK;
        sleep_until(Instant::now() + every.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        match topology.stay_subscribed(&subscription).await {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                tracing::warn!(%error, "the group may get nothing; looking again");
                failed = true;
            }
            Err(error) => tracing::debug!(%error, "the group may still get nothing"),
        }
    }
}

/// How long to wait after so many failures in a row; consumers that failed together do not ask
/// again together.
fn pause(failures: u32) -> Duration {
    let backoff = Backoff::exponential(Duration::from_millis(200)).cap(Duration::from_secs(5));
    backoff.jitter(Jitter::Equal).delay(failures, &fastrand::u64(..).to_string())
}
