mod leave;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anybroker_core::adapter::{Alone, Background, Outage, pause};
use anybroker_core::{
    Confirmation, Consumer, Declare, Delivery, ErrorKind, Inbox, InboxSender, Outcome, Reason,
    Result, RetryClass, Settler, Start, Subscription,
};
use async_trait::async_trait;
use redis::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::held::Source;
use crate::id::Id;
use crate::keep::keep;
use crate::line::Line;
use crate::message::{Entry, read, too_large};
use crate::reclaim::Cursor;
use crate::scripts::Found;
use crate::settle::{RedisSettler, Shared};
use crate::topology::Topology;
use crate::upkeep::{TICK, TRIM_EVERY};

/// The most entries and bytes of one read.
const MOST: usize = 500;
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// How long giving back may take: all of it comes again by itself, and the server may be gone.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How much room is worth a read while there is more to come, and how long to wait for it.
const WORTHWHILE: usize = 64;
const NAP: Duration = Duration::from_millis(1);

/// Back to the group, unseen.
const RELEASE: Outcome = Outcome::Release { after: Duration::ZERO };

/// A consumer of one subscription.
pub(crate) struct RedisConsumer {
    inbox: Inbox,
    settler: Arc<RedisSettler>,
    shared: Arc<Shared>,
}

/// The task that reads for one consumer.
pub(crate) struct Reader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settler: Arc<RedisSettler>,
    pub(crate) topology: Arc<Topology>,
    clients: Arc<[Client]>,
    outage: Outage,
    /// What was read and does not fit the prefetch yet: a read of two streams may answer twice
    /// what it was asked for.
    pub(crate) surplus: VecDeque<Delivery>,
    /// Where each source is to be searched further.
    pub(crate) cursors: Vec<Cursor>,
    /// Since when those are leaving that are given up once all that was handed out is settled.
    pub(crate) leaving: Vec<Option<Instant>>,
    /// Until when one is kept that did not get empty.
    pub(crate) staying: Vec<Option<Instant>>,
    /// Which ordered partition is read first, for none to take all room for ever.
    pub(crate) turn: usize,
    /// What names the next ownership apart from all before.
    pub(crate) ownerships: u64,
    pub(crate) next_tick: Instant,
    pub(crate) next_trim: Instant,
    pub(crate) next_claim: Instant,
    pub(crate) recover_at: Option<Instant>,
    /// Why some of what is due in each partition cannot be moved, which is logged once.
    pub(crate) unmoved: Vec<String>,
    /// Bytes of an entry, as they came last.
    average: usize,
    /// What was too large to be decoded, on its way to the dead letters. The mutex is never waited
    /// for: with it, other threads may see the reader.
    given_up: Mutex<Vec<Confirmation>>,
    /// Whether there was no room for what others left; it comes before what is new.
    pub(crate) claims: bool,
    /// Whether it was said that a stream is somebody else's and grows.
    pub(crate) told_untrimmed: bool,
}

/// Declares the group and consumes it.
pub(crate) async fn consume(
    topology: Arc<Topology>,
    clients: Arc<[Client]>,
    closing: watch::Receiver<bool>,
    subscription: &Subscription,
    prefetch: usize,
) -> Result<Box<dyn Consumer>> {
    let group = topology.group(subscription)?;
    topology.declare_group(&group, subscription.start_position()).await?;
    // Whatever it reads waits by the server's time.
    topology.link.learn_time().await?;
    // Nobody else's: what is pending under a name that two share could be taken from both.
    let consumer = format!("{}{:016x}", topology.process, fastrand::u64(..));
    let partitions = group.partitions.len();
    let link = Arc::clone(&topology.link);
    let shared = Arc::new(Shared::new(link, group, subscription.clone(), consumer, prefetch));
    let settler = RedisSettler::start(Arc::clone(&shared));
    let (sender, inbox) = Inbox::channel(Inbox::COUNTED);
    let reader = Reader {
        shared: Arc::clone(&shared),
        settler: Arc::clone(&settler),
        topology,
        clients,
        outage: Outage::new("consume"),
        surplus: VecDeque::new(),
        cursors: vec![Cursor::start(); 2 * partitions],
        leaving: vec![None; partitions],
        staying: vec![None; partitions],
        turn: 0,
        ownerships: 0,
        next_tick: Instant::now(),
        next_trim: Instant::now() + TRIM_EVERY,
        next_claim: Instant::now(),
        recover_at: None,
        unmoved: vec![String::new(); partitions],
        // The first read takes one, and learns more.
        average: MOST_BYTES,
        given_up: Mutex::default(),
        claims: false,
        told_untrimmed: false,
    };
    // Ends with the reader, also where that is dropped with its runtime.
    let mut keeping = JoinSet::new();
    Background::enter(|| keeping.spawn(keep(Arc::clone(&shared))));
    tokio::spawn(async move {
        reader.run(sender, closing).await;
        drop(keeping);
    });
    Ok(Box::new(RedisConsumer { inbox, settler, shared }))
}

#[async_trait]
impl Consumer for RedisConsumer {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        let from = out.len();
        loop {
            ready!(self.inbox.poll_receive(cx, max, out))?;
            // Dropped here, when nothing is locked: what was lost while it waited.
            drop(self.shared.held.hand_out(out, from));
            if max == 0 || out.len() > from {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn set_prefetch(&mut self, prefetch: usize) {
        self.shared.set_prefetch(prefetch);
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        // What is held of an ordered group is held by its partition, which is kept by itself.
        let leased = !self.shared.group.ordered;
        leased.then(|| (Arc::clone(&self.settler) as _, self.shared.lease()))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Box::new(self.inbox).close().await
    }
}

impl fmt::Debug for RedisConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConsumer").field("settler", &self.settler).finish_non_exhaustive()
    }
}

/// Resolves when the consumer or the broker is closed.
pub(crate) async fn closed(inbox: &InboxSender, closing: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = inbox.closed() => {}
        // Gone, it counts as closed.
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

impl Reader {
    async fn run(mut self, inbox: InboxSender, mut closing: watch::Receiver<bool>) {
        let mut failures = 0;
        while let Err(error) = self.work(&inbox, &mut closing, &mut failures).await {
            let group = &self.shared.group;
            // Somebody deleted the group: it is made anew, and begins where it began.
            let deleted = error.kind() == ErrorKind::NotFound
                && self.topology.settings.options.declare == Declare::Create;
            if error.retry_class() == RetryClass::Permanent && !deleted {
                // The worker opens another consumer, and learns more then.
                let _ = inbox.fail(error).await;
                break;
            }
            if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
                self.outage.goes_on(&error);
            } else {
                tracing::warn!(%error, group = %group.name, of = %group.layout.name, "consuming failed");
            }
            failures += 1;
            tokio::select! {
                () = pause(failures) => {}
                () = closed(&inbox, &mut closing) => break,
            }
            if deleted {
                // If it fails, so does the next read.
                let declared =
                    self.topology.declare_group(&self.shared.group, Start::Earliest).await;
                tracing::debug!(?declared, "declared the group anew");
            }
            self.lost_track();
        }
        self.end(inbox, closing).await;
    }

    /// What was answered may have been lost with the connection.
    fn lost_track(&mut self) {
        for (partition, ..) in self.shared.held.all_owned() {
            self.shared.held.shut(partition);
        }
    }

    async fn work(
        &mut self,
        inbox: &InboxSender,
        closing: &mut watch::Receiver<bool>,
        failures: &mut u32,
    ) -> Result<()> {
        let mut line = Line::open(&self.clients).await?;
        self.sweep().await?;
        let ordered = self.shared.group.ordered;
        if !ordered {
            self.recover().await?;
            // A read of the former connection may still go on, and what it finds is lost too.
            self.recover_at = Some(Instant::now() + 2 * TICK);
        }
        loop {
            if inbox_is_closed(inbox, closing) {
                return Ok(());
            }
            if self.next_tick <= Instant::now() {
                self.tick().await?;
            }
            self.feed(inbox);
            self.await_given_up().await?;
            if !ordered {
                self.give_back_surplus();
            }
            let prefetch = self.shared.prefetch();
            let (room, _) = self.shared.held.room(prefetch);
            if room == 0 || !self.surplus.is_empty() {
                self.await_room(inbox, closing).await;
                continue;
            }
            if room < WORTHWHILE && room < prefetch / 2 {
                // Whoever frees one place is about to free more.
                sleep(NAP).await;
            }
            if self.claims && !ordered {
                self.claim_all().await?;
                continue;
            }
            let (room, _) = self.shared.held.room(self.shared.prefetch());
            let room = room.min(MOST).min(MOST_BYTES / self.average.max(1)).max(1);
            if ordered {
                self.read_in_order(&mut line, room, inbox, closing).await?;
            } else {
                let wait = self.next_tick.saturating_duration_since(Instant::now());
                let sources = self.cursors.len();
                let shared = Arc::clone(&self.shared);
                let streams: Vec<_> = (0..sources).map(|s| shared.group.stream(s)).collect();
                let wake = &shared.claimable;
                let mut command = redis::cmd("XREADGROUP");
                command.arg("GROUP").arg(&shared.group.name).arg(&shared.consumer);
                // For each stream; those of retries are mostly empty.
                let count = room.div_ceil(shared.group.partitions.len());
                command.arg("COUNT").arg(count).arg("BLOCK").arg(at_least_a_moment(wait));
                command.arg("STREAMS").arg(&streams).arg(vec![">"; sources]);
                let asked = Instant::now();
                let answer =
                    line.read(&command, wait, &shared.link, wake, closed(inbox, closing)).await?;
                self.claims |= answer.woken;
                for (stream, found) in crate::scripts::streams(answer.value) {
                    if let Some(source) = streams.iter().position(|name| *name == stream) {
                        self.take_in(source, found, asked, None);
                    }
                }
            }
            *failures = 0;
            self.outage.ends();
        }
    }

    /// Decodes what was read; it is handed over when there is room. Its lease began no earlier
    /// than it was asked for. A suspect that was claimed has its place.
    pub(crate) fn take_in(
        &mut self,
        source: Source,
        found: Vec<Found>,
        asked: Instant,
        mut place: Option<Alone>,
    ) {
        let (shared, suspicious) = (&self.shared, self.suspicious());
        let most = self.topology.settings.server.max_payload;
        let (mut bytes, entries) = (0, found.len());
        for Found { id, count, fields } in found {
            let Some(number) = Id::parse(id.as_bytes()) else { continue };
            let default_type = shared.group.layout.destination.name();
            let Entry { envelope, hop, size, is_too_large, is_cut } =
                read(&id, fields, default_type, &shared.link.clock, most);
            bytes += size;
            let returned = count.saturating_sub(1);
            let unsettled = returned.saturating_add(hop.as_ref().map_or(0, |hop| hop.unsettled));
            let suspect = unsettled >= suspicious && !shared.group.ordered;
            let tag = shared.held.insert(source, number, count, asked + shared.lease(), suspect);
            let settler = Arc::clone(&self.settler) as Arc<dyn Settler>;
            let delivery = Delivery::new(Arc::new(envelope), hop, returned, tag, settler);
            if is_too_large {
                let given_up = self.give_up_unseen(&delivery, &too_large(size, most), is_cut);
                lock(&self.given_up).push(given_up);
                continue;
            }
            self.surplus.extend(if suspect {
                self.topology.suspects.admit(delivery, place.take())
            } else {
                Some(delivery)
            });
        }
        if let Some(average) = bytes.checked_div(entries) {
            self.average = average;
        }
    }

    /// Gives up what is too large for a message, before a handler has seen it.
    fn give_up_unseen(&self, delivery: &Delivery, reason: &Reason, is_cut: bool) -> Confirmation {
        tracing::warn!(
            id = delivery.envelope().id,
            r#type = &*delivery.envelope().r#type,
            subscription = %self.shared.subscription.stored_name(),
            attempt = delivery.attempt(),
            reason = reason.code(),
            error = reason.error(),
            "a message is given up"
        );
        self.settler.give_up(delivery, reason, is_cut)
    }

    /// Waits until what was too large is among the dead letters.
    async fn await_given_up(&self) -> Result<()> {
        let given_up = std::mem::take(&mut *lock(&self.given_up));
        for confirmation in given_up {
            match confirmation.await {
                Err(error) if error.kind() != ErrorKind::StaleDelivery => {
                    // It comes again, after a pause.
                    return Err(error.class(RetryClass::Transient));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands over what fits.
    pub(crate) fn feed(&mut self, inbox: &InboxSender) {
        let handed_over = self.shared.held.open().saturating_sub(self.surplus.len());
        let fits = self.shared.prefetch().saturating_sub(handed_over).min(self.surplus.len());
        if fits > 0 {
            // What does not go over is released.
            let _ = inbox.deliver_lot(self.surplus.drain(..fits).collect());
        }
    }

    /// Gives back what did not fit: another consumer may have room.
    fn give_back_surplus(&mut self) {
        for delivery in self.surplus.drain(..) {
            drop(delivery.settle(RELEASE));
        }
    }

    async fn await_room(&mut self, inbox: &InboxSender, closing: &mut watch::Receiver<bool>) {
        tokio::select! {
            () = self.shared.room.notified() => {}
            () = self.shared.claimable.notified() => self.claims = true,
            () = tokio::time::sleep_until(self.next_tick) => {}
            () = closed(inbox, closing) => {}
        }
    }

    /// Gives back what no handler has seen, and stays for what handlers still hold.
    async fn end(mut self, inbox: InboxSender, mut closing: watch::Receiver<bool>) {
        // Those that wait longest come first again.
        self.give_back_surplus();
        let _ = timeout(END_TIMEOUT, self.settler.flush()).await;
        let shared = Arc::clone(&self.shared);
        // An ordered partition is owned until all of it is settled.
        let mut inbox = Some(inbox).filter(|_| shared.group.ordered);
        while !shared.held.is_empty() && !*closing.borrow() {
            // Nobody receives them any more.
            for holding in shared.held.take_waiting() {
                drop(self.settler.give_back(holding, false));
            }
            tokio::select! {
                () = sleep(TICK / 5) => {}
                () = shared.room.notified() => {}
                changed = closing.changed() => if changed.is_err() {
                    break;
                },
            }
            let _ = timeout(TICK, self.settler.flush()).await;
            shared.held.forget_lost();
        }
        let giving_back = async {
            let given_back: Vec<_> = shared
                .held
                .close()
                .into_iter()
                .map(|(holding, seen)| self.settler.give_back(holding, seen))
                .collect();
            for confirmation in given_back {
                // What is not given back comes again when its lease is over.
                let _ = confirmation.await;
            }
            self.settler.flush().await;
            self.leave().await
        };
        match timeout(END_TIMEOUT, giving_back).await {
            Ok(Ok(())) => {}
            failed => tracing::debug!(?failed, "leaving the group failed"),
        }
        drop(inbox.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn inbox_is_closed(inbox: &InboxSender, closing: &watch::Receiver<bool>) -> bool {
    use futures_util::FutureExt;
    *closing.borrow() || inbox.closed().now_or_never().is_some()
}

/// For ever is written as 0.
pub(crate) fn at_least_a_moment(wait: Duration) -> u64 {
    crate::settle::millis(wait).max(1)
}
