use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anybroker_core::adapter::{Background, pause};
use anybroker_core::{
    Confirmation, Confirmer, Delivery, Envelope, Error, ErrorKind, Hop, Outcome, Reason, Result,
    Settler, Subscription, now,
};
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{refused, stale};
use crate::held::{Held, Holding, Source};
use crate::id::Id;
use crate::layout::Group;
use crate::link::{Call, Link};
use crate::message::{write, write_hop};
use crate::scripts::{REPLACE, SETTLE};
use crate::writer::Writer;

/// The place of a copy that the server makes of the original.
pub(crate) const WHOLE: &str = "whole";

/// Settlements without a copy that one call makes: of one stream, and delivered equally often.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lot {
    pub(crate) source: Source,
    pub(crate) mode: Mode,
    pub(crate) count: u32,
}

/// What the parts of a consumer share.
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) group: Arc<Group>,
    pub(crate) subscription: Subscription,
    /// Its name, which nobody else has.
    pub(crate) consumer: String,
    pub(crate) held: Held,
    /// How many deliveries may wait or be out; the worker changes it.
    prefetch: AtomicUsize,
    /// Something may be claimed at once.
    pub(crate) claimable: Notify,
    /// Whether there may be something to trim.
    pub(crate) settled: AtomicBool,
    /// There is room again.
    pub(crate) room: Notify,
}

/// Settles the deliveries of one consumer.
pub(crate) struct RedisSettler {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

pub(crate) enum Command {
    Ack(Holding, Confirmer),
    /// Back to the group, to be delivered with this count and one more.
    Back(Holding, u32, Option<Confirmer>),
    Replace(Holding, Box<Copy>, Confirmer),
    /// Answers when everything before it is done.
    Flush(oneshot::Sender<()>),
}

/// What takes the place of a delivery.
pub(crate) struct Copy {
    /// `whole` are the dead letters too, with the fields of the original.
    place: &'static str,
    delay: Duration,
    pub(crate) envelope: Arc<Envelope>,
    hop: Hop,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Ack,
    Renew,
    /// Back to the group, to be delivered with this count and one more.
    Back(u32),
}

impl Shared {
    pub(crate) fn new(
        link: Arc<Link>,
        group: Arc<Group>,
        subscription: Subscription,
        consumer: String,
        prefetch: usize,
    ) -> Self {
        let held =
            if group.ordered { Held::ordered(group.partitions.len()) } else { Held::default() };
        Self {
            link,
            group,
            subscription,
            consumer,
            held,
            prefetch: AtomicUsize::new(prefetch.max(1)),
            claimable: Notify::new(),
            settled: AtomicBool::new(true),
            room: Notify::new(),
        }
    }

    pub(crate) fn prefetch(&self) -> usize {
        self.prefetch.load(Ordering::Relaxed)
    }

    pub(crate) fn set_prefetch(&self, prefetch: usize) {
        self.prefetch.store(prefetch.max(1), Ordering::Relaxed);
        self.room.notify_one();
    }

    pub(crate) fn lease(&self) -> Duration {
        self.subscription.lease_time()
    }

    /// Begins a call of a script for one source: stream, lock, more keys; group, consumer, token.
    pub(crate) fn call(
        &self,
        script: &'static redis::Script,
        source: Source,
        keys: &[&str],
    ) -> Call<'static> {
        let lock = &self.group.partitions[source / 2].lock;
        let mut call = Call::new(script).key(self.group.stream(source)).key(lock);
        for key in keys {
            call = call.key(key);
        }
        call.arg(&self.group.name).arg(&self.consumer).arg(self.held.token(source / 2))
    }

    /// Settles a lot, in the order of the ids.
    pub(crate) async fn settle(
        &self,
        lot: Lot,
        ids: impl Iterator<Item = Id> + Clone,
    ) -> Result<Fenced> {
        let (mode, back) = match lot.mode {
            Mode::Ack => ("ack", 0),
            Mode::Renew => ("renew", 0),
            Mode::Back(count) => ("back", count),
        };
        let mut call = self.call(&SETTLE, lot.source, &[]).arg(mode).arg(lot.count).arg(back);
        let mut text = String::new();
        for id in ids {
            text.clear();
            // Writing to a text does not fail.
            let _ = write!(text, "{id}");
            call = call.arg(&text);
        }
        self.fenced(&call).await
    }

    /// Runs a fenced script, and again when the connection was lost before the answer came: that
    /// is safe, and only leaves it open whether it was the first time that it took effect.
    async fn fenced(&self, call: &Call<'_>) -> Result<Fenced> {
        let end = Instant::now() + self.lease();
        let mut attempt = 0;
        loop {
            match self.link.run("settle", call).await {
                Ok((lost, refused)) => {
                    return Ok(Fenced { lost, refused, again: attempt > 0 });
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                    attempt += 1;
                    pause(attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews at once; what is somebody else's by now is forgotten.
    pub(crate) async fn renew(&self, holdings: Vec<Holding>) -> Result<()> {
        let mut lots = BTreeMap::<_, Vec<_>>::new();
        for holding in holdings {
            lots.entry(holding.lot(Mode::Renew)).or_default().push(holding);
        }
        let renewals = lots.into_iter().map(|(lot, mut holdings)| async move {
            holdings.sort_unstable_by_key(|holding| holding.id);
            // Not later than the server does.
            let until = Instant::now() + self.lease();
            let fenced = self.settle(lot, holdings.iter().map(|holding| holding.id)).await?;
            let (mut kept, mut lost) = (Vec::new(), Vec::new());
            for (place, holding) in holdings.iter().enumerate() {
                if fenced.is_mine(place) { &mut kept } else { &mut lost }.push(holding.tag);
            }
            self.held.renewed(kept, until);
            self.held.remove(lost);
            Ok(())
        });
        // At once, and one that fails keeps none of the others from being renewed.
        join_all(renewals).await.into_iter().collect()
    }

    pub(crate) async fn replace(
        &self,
        source: Source,
        copies: &[(Holding, Box<Copy>, Confirmer)],
    ) -> Result<Fenced> {
        let partition = &self.group.partitions[source / 2];
        let keys = [&*partition.retry, &partition.delayed, &self.group.dead_letters];
        let mut call = self.call(&REPLACE, source, &keys);
        for (holding, copy, _) in copies {
            // Counted first, so that they need not be in memory once more to be counted.
            let mut fields = 0_usize;
            copy.write(|_, _| fields += 2);
            call = call
                .arg(holding.id.to_string())
                .arg(holding.count)
                .arg(copy.place)
                .arg(millis(copy.delay))
                .arg(copy.hop.id.as_deref())
                .arg(fields);
            copy.write(|name, value| {
                call.0.arg(name).arg(value);
            });
        }
        self.fenced(&call).await
    }
}

/// In whole milliseconds, never less than it says.
pub(crate) fn millis(delay: Duration) -> u64 {
    // A century: the server counts in doubles.
    const LONGEST: u64 = 100 * 366 * 24 * 3_600_000;
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).min(LONGEST)
}

/// What a fenced script answered.
pub(crate) struct Fenced {
    /// The places of those that were not this consumer's any more, in their order.
    lost: Vec<usize>,
    /// The places of those that the server refused, with its error.
    refused: BTreeMap<usize, String>,
    /// Whether an earlier answer was lost: then what is not this consumer's may be so since it was
    /// settled.
    pub(crate) again: bool,
}

impl Fenced {
    pub(crate) fn is_mine(&self, place: usize) -> bool {
        self.lost.binary_search(&place).is_err()
    }

    /// The error of one that the server refused.
    pub(crate) fn refusal(&self, place: usize) -> Option<Error> {
        let text = self.refused.get(&place)?;
        Some(refused("settle", "its copy cannot be stored", text.clone()))
    }
}

impl Holding {
    pub(crate) fn lot(&self, mode: Mode) -> Lot {
        Lot { source: self.source, mode, count: self.count }
    }
}

impl Copy {
    fn write(&self, write_field: impl FnMut(&[u8], &[u8])) {
        if self.place == WHOLE {
            write_hop(&self.hop, write_field);
        } else {
            write(&self.envelope, &self.hop, self.delay, write_field);
        }
    }

    /// About how many bytes it takes to send it.
    pub(crate) fn size(&self) -> usize {
        if self.place == WHOLE {
            return 1024;
        }
        let headers = self.envelope.headers.iter().map(|(name, value)| name.len() + value.len());
        self.envelope.payload.len() + headers.sum::<usize>() + 1024
    }
}

impl RedisSettler {
    pub(crate) fn start(shared: Arc<Shared>) -> Arc<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Writer::new(Arc::clone(&shared)).run(receiver));
        Arc::new(Self { shared, commands })
    }

    /// Resolves when what was settled so far is with the server, as far as it can be.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = flushed.await;
        }
    }

    pub(crate) fn give_back(&self, holding: Holding, seen: bool) -> Confirmation {
        self.back(holding, if seen { holding.count } else { holding.count.saturating_sub(1) })
    }

    /// Gives back what was delivered so often by now.
    fn back(&self, holding: Holding, count: u32) -> Confirmation {
        self.send(|confirmer| Command::Back(holding, count, Some(confirmer)))
    }

    /// Gives up what is too large, before a handler has seen it. Of what was not decoded whole, the
    /// server copies the fields.
    pub(crate) fn give_up(
        &self,
        delivery: &Delivery,
        reason: &Reason,
        is_cut: bool,
    ) -> Confirmation {
        let shared = &self.shared;
        let Some(holding) = shared.held.settle(delivery.tag(), false) else {
            return Confirmation::ready(Ok(()));
        };
        let mut hop = Hop::dead_letter(delivery, reason, &shared.subscription);
        hop.attempts = hop.attempts.saturating_sub(1);
        let envelope = Arc::clone(delivery.envelope());
        let place = if is_cut { WHOLE } else { "dead" };
        let copy = Box::new(Copy { place, delay: Duration::ZERO, envelope, hop });
        self.send(|confirmer| Command::Replace(holding, copy, confirmer))
    }

    fn send(&self, command: impl FnOnce(Confirmer) -> Command) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        // The writer ends after the last settler. If it is gone, so is the runtime, and the
        // confirmer with the command, which says that nothing is known.
        let _ = self.commands.send(command(confirmer));
        self.shared.room.notify_one();
        confirmation
    }
}

/// Whether an ordered delivery is given back until a time that it came with: it is stored with that,
/// as the server does not hand it out again in its place.
fn is_set_aside(delivery: &Delivery, outcome: &Outcome) -> bool {
    let is_early = delivery.hop().not_before.is_some_and(|due| due > now());
    is_early && matches!(outcome, Outcome::Release { after } if !after.is_zero())
}

impl Settler for RedisSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let shared = &self.shared;
        let keeps_place = shared.group.ordered && !is_set_aside(&delivery, &outcome);
        let returns = matches!(outcome, Outcome::Retry { .. } | Outcome::Release { .. });
        let Some(holding) = shared.held.settle(delivery.tag(), keeps_place && returns) else {
            let text = "its lease ran out, or the broker was closed: the message comes again";
            return Confirmation::ready(Err(stale(text)));
        };
        // The server does not know of the attempts since it was delivered.
        let used = delivery.attempt().saturating_sub(delivery.hop().attempts);
        match outcome {
            Outcome::Ack => return self.send(|confirmer| Command::Ack(holding, confirmer)),
            // In order, it keeps its place.
            Outcome::Retry { .. } if keeps_place => return self.back(holding, used),
            Outcome::Release { after } if keeps_place || after.is_zero() => {
                return self.back(holding, used.saturating_sub(1));
            }
            _ => {}
        }
        let (place, delay) = match &outcome {
            Outcome::DeadLetter { .. } => ("dead", Duration::ZERO),
            Outcome::Retry { after } | Outcome::Release { after } if !after.is_zero() => {
                ("delayed", *after)
            }
            _ => ("retry", Duration::ZERO),
        };
        let hop = Hop::after(&delivery, &outcome, &shared.subscription).unwrap_or_default();
        let envelope = Arc::clone(delivery.envelope());
        let copy = Box::new(Copy { place, delay, envelope, hop });
        self.send(|confirmer| Command::Replace(holding, copy, confirmer))
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let (holdings, shared) = (self.shared.held.out(tags), Arc::clone(&self.shared));
        let (confirmer, confirmation) = Confirmation::channel();
        // Not behind settlements, which may wait for a thread that a handler blocks.
        Background::spawn(async move { confirmer.confirm(shared.renew(holdings).await) });
        confirmation
    }

    fn abandon(&self, tag: u64) {
        if let Some((holding, seen)) = self.shared.held.abandon(tag, self.shared.group.ordered) {
            drop(self.give_back(holding, seen));
        }
    }

    fn is_lost(&self, tag: u64) -> bool {
        self.shared.held.is_lost(tag)
    }
}

impl fmt::Debug for RedisSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettler")
            .field("subscription", &self.shared.subscription)
            .field("consumer", &self.shared.consumer)
            .finish_non_exhaustive()
    }
}
