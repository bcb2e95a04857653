//! Runs handlers over subscriptions, and loses nothing.

mod given_up;
mod lanes;
mod leases;
mod parked;
mod policy;
mod pulse;
mod report;
mod settling;
mod shard;
mod slots;
mod source;
mod standstill;
mod timer;
mod window;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};

use self::pulse::Pulse;
pub use self::report::Report;
use self::shard::Shard;
use self::source::Source;
use self::window::Window;
use crate::{Broker, Error, ErrorKind, Handler, Result, Subscription};

/// How long open settlements and the close of a consumer may take after a drain.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after the drain timeout a loop must stand in the same step of a handler to be left
/// behind. One that only waits for its settlements is waited for.
const DRAIN_GRACE: Duration = Duration::from_millis(250);

/// The clock has a limit.
const LONGEST_DRAIN: Duration = Duration::from_hours(24 * 365 * 30);

/// A loop that receives for itself may hold what another has room for: with few handlers there is one
/// loop.
const PER_LOOP: usize = 16;

/// With more subscriptions than this each has one loop: together they keep all cores busy.
const MANY_SUBSCRIPTIONS: usize = 16;

/// Runs handlers over the deliveries of one broker's subscriptions.
///
/// Each subscription is handled by one loop for each 16 handlers, at most one per runtime thread,
/// and no more than an ordered one has partitions; with more than 16 subscriptions each has one.
/// Loops run their handlers concurrently, without a task for each. They share a consumer, except in
/// order and where the broker needs none ([`one_consumer`](crate::Capabilities::one_consumer)).
/// A handler that blocks its thread therefore holds up its loop, and may hold up renewals of leases
/// on the same runtime, so that messages are handled twice: move blocking work to
/// `tokio::task::spawn_blocking`. The log names a handler that blocks for over a second.
///
/// # Back-pressure
/// The service's `poll_ready` is the only one: while it is pending, its subscription receives
/// nothing more.
///
/// # Ordering
/// An ordered subscription handles messages of one key one after the other. A retry or a release
/// waits in the process and holds its key back; but one that would end later than three quarters of
/// the broker's [`longest_hold`](crate::Capabilities::longest_hold) after the message was received is
/// left to the broker, where it may lose its place. A drain waits for it too, within its timeout,
/// where the broker would forget the rest
/// ([`ordered_delays`](crate::Capabilities::ordered_delays)).
///
/// # Defaults
/// 64 handlers at once for each subscription; 30 s to drain. An error that no retry layer judged
/// is attempted 5 times in all, with waits of 1 s, 2 s, 4 s and 8 s (each times 0.5 to 1.5);
/// permanent and exhausted errors go to the dead-letter queue. A panic is an error like any other.
#[must_use = "a worker does nothing until it is started"]
pub struct Worker {
    broker: Arc<dyn Broker>,
    mounts: Vec<(Arc<Subscription>, Box<dyn Mount>)>,
    concurrency: usize,
    drain_timeout: Duration,
    loops: Option<usize>,
}

/// A worker that has declared its groups and consumes.
///
/// Dropped, it stops at once: running handlers are cut off, and their messages come back. It is held
/// until the program ends, and passed to [`run_until`](Self::run_until); one that is dropped before
/// says so in the log.
#[must_use = "a dropped worker stops"]
pub struct RunningWorker {
    shutdown: watch::Sender<bool>,
    shards: JoinSet<Ended>,
    /// What the loops that have not ended show of themselves.
    pulses: HashMap<Id, Arc<Pulse>>,
    drain_timeout: Duration,
    /// Whether somebody waits for its end.
    awaited: bool,
}

impl Worker {
    /// Makes a worker without subscriptions.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self {
            broker,
            mounts: Vec::new(),
            concurrency: 64,
            drain_timeout: Duration::from_secs(30),
            loops: None,
        }
    }

    /// Handles a subscription with a service: [`handler_fn`](crate::handler_fn), a
    /// [`Router`](crate::Router), either under any tower layers, or any service over
    /// [`Message`](crate::Message).
    ///
    /// A group has one handler, for all the types of its messages: a worker that subscribes it twice
    /// does not start. Use a [`Router`](crate::Router) for several types.
    pub fn subscribe(mut self, subscription: Subscription, service: impl Handler) -> Self {
        self.mounts.push((Arc::new(subscription), Box::new(Mounted(service))));
        self
    }

    /// Sets how many handlers of one subscription run at once; 64 unless set, at least 1.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers.max(1);
        self
    }

    /// Sets how long running handlers, and ordered retries that wait, may take to finish at
    /// shutdown, before they are cut off and their messages given back; 30 s unless set.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Sets how many loops share a subscription; unless set one for each 16 handlers, at most one
    /// per thread of the runtime. Never more than handlers, or than an ordered subscription has
    /// partitions.
    pub fn loops(mut self, loops: usize) -> Self {
        self.loops = Some(loops.max(1));
        self
    }

    /// Declares every subscription and starts to consume: messages published from here on reach
    /// the groups.
    ///
    /// # Errors
    /// What validating, declaring or consuming answers; nothing runs then.
    pub async fn start(self) -> Result<RunningWorker> {
        if self.mounts.is_empty() {
            let text = "the worker has no subscription: call subscribe(..) before start()";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let Self { broker, mounts, concurrency, drain_timeout, loops } = self;
        let mut declared = FuturesUnordered::new();
        let mut groups = HashSet::new();
        for (subscription, _) in &mounts {
            subscription.validate()?;
            check_mounted_once(subscription, &mut groups)?;
            check_hold(subscription, broker.capabilities().longest_hold)?;
            let (broker, subscription) = (Arc::clone(&broker), Arc::clone(subscription));
            declared.push(async move { broker.declare(&subscription).await });
        }
        while let Some(result) = declared.next().await {
            result?;
        }
        let threads = if mounts.len() > MANY_SUBSCRIPTIONS { 1 } else { threads() };
        let (shutdown, watch) = watch::channel(false);
        let mut starting = Vec::new();
        for (subscription, mount) in mounts {
            // Only one consumer of an ordered partition is active: more would stand idle.
            let active = if subscription.is_ordered() {
                usize::from(subscription.destination().partition_count())
            } else {
                usize::MAX
            };
            let loops = loops.unwrap_or_else(|| (concurrency / PER_LOOP).clamp(1, threads));
            let loops = loops.min(concurrency).min(active);
            // Shared out so that the sum is the concurrency asked for.
            let shares: Vec<_> = (0..loops).map(|index| (concurrency + index) / loops).collect();
            // In order a key's messages are one loop's, and so a consumer's.
            let together = broker.capabilities().one_consumer && !subscription.is_ordered();
            let consumers = if together { 1 } else { loops };
            for shares in shares.chunks(loops / consumers) {
                let capabilities = broker.capabilities();
                let window =
                    |share: &usize| Window::new(*share, concurrency, &subscription, capabilities);
                let wanted: Vec<_> = shares.iter().map(|share| window(share).wanted()).collect();
                let sources = Source::open(&broker, &subscription, &wanted).await?;
                for (source, share) in sources.into_iter().zip(shares) {
                    let pulse = Pulse::start(subscription.stored_name());
                    let run = mount.run(Setup {
                        // A copy of its own, so that the loops do not share a reference count.
                        subscription: Arc::new(Subscription::clone(&subscription)),
                        source,
                        concurrency: *share,
                        window: window(share),
                        drain_timeout,
                        shutdown: watch.clone(),
                        pulse: Arc::clone(&pulse),
                    });
                    starting.push((pulse, run));
                }
            }
        }
        let mut shards = JoinSet::new();
        let pulses = starting.into_iter().map(|(pulse, run)| (shards.spawn(run).id(), pulse));
        let pulses = pulses.collect();
        Ok(RunningWorker { shutdown, shards, pulses, drain_timeout, awaited: false })
    }
}

impl RunningWorker {
    /// Works until `shutdown` resolves, then drains: takes nothing new, lets running handlers
    /// finish within the drain timeout, settles, gives back the rest, and reports.
    ///
    /// The broker stays open, since publishers may share it.
    ///
    /// A loop whose thread a handler blocks past the drain timeout is left behind with a line in the
    /// log, and what it did since its last wait is not in the report. A runtime that is dropped waits
    /// for such a thread; a second signal ends the process all the same
    /// ([`shutdown_signal`](crate::shutdown_signal)).
    ///
    /// # Cancel safety
    /// Dropping this future stops the worker at once; unsettled messages come back.
    ///
    /// # Errors
    /// `Closed` when the broker was closed before `shutdown` resolved; the report is logged then.
    pub async fn run_until(mut self, shutdown: impl Future<Output = impl Sized>) -> Result<Report> {
        self.awaited = true;
        let mut ended = Vec::new();
        tokio::select! {
            _ = shutdown => {}
            Some(first) = self.shards.join_next_with_id() => self.ended(first, &mut ended),
        }
        // Every loop holds a receiver while it lives; without one there is nobody to tell.
        let _ = self.shutdown.send(true);
        let mut look = Instant::now() + self.drain_timeout.min(LONGEST_DRAIN) + DRAIN_GRACE;
        let mut before = HashMap::new();
        loop {
            match timeout_at(look, self.shards.join_next_with_id()).await {
                Ok(None) => break,
                Ok(Some(next)) => {
                    self.ended(next, &mut ended);
                    continue;
                }
                Err(_) => look = Instant::now() + DRAIN_GRACE,
            }
            let step = |(id, pulse): (&Id, &Arc<Pulse>)| Some((*id, pulse.current_step()?));
            let steps: HashMap<_, _> = self.pulses.iter().filter_map(step).collect();
            if steps.len() == self.pulses.len() && steps == before {
                break;
            }
            before = steps;
        }
        // Cut off, a loop would drop its messages when its thread comes back, which counts as an
        // attempt; left alone it gives them back.
        self.shards.detach_all();
        let mut report = Report::default();
        for pulse in self.pulses.values() {
            tracing::warn!(
                subscription = pulse.subscription(),
                "a handler blocks its thread past the drain timeout; its loop is left behind"
            );
            report = [report, pulse.noted()].into_iter().sum();
        }
        let mut result = Ok(());
        for shard in ended {
            match shard {
                Ok((counts, end)) => {
                    report = [report, counts].into_iter().sum();
                    result = result.and(end);
                }
                Err(error) => {
                    let text = "a loop of the worker ended before its time; its messages come back";
                    result =
                        result.and(Err(Error::new(ErrorKind::Closed, text).with_source(error)));
                }
            }
        }
        if let Err(error) = &result {
            tracing::warn!(%error, %report, "the worker ended before it was told to");
        }
        result.map(|()| report)
    }

    fn ended(
        &mut self,
        ended: std::result::Result<(Id, Ended), JoinError>,
        all: &mut Vec<std::result::Result<Ended, JoinError>>,
    ) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.pulses.remove(&id);
        all.push(ended.map(|(_, ended)| ended));
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        if !self.awaited {
            let names = self.pulses.values().map(|pulse| pulse.subscription());
            let subscriptions = names.collect::<BTreeSet<_>>();
            tracing::warn!(
                ?subscriptions,
                "a running worker was dropped, which stops it at once; keep it, and await run_until(..)"
            );
        }
    }
}

/// Two handlers of one group would each get half of its messages, whatever their types.
fn check_mounted_once(subscription: &Subscription, groups: &mut HashSet<String>) -> Result<()> {
    let group = subscription.stored_name();
    let text = format!(
        "the worker subscribes {group:?} twice, so that each handler would get a part of all its \
         messages: give one handler for all types, a Router, or name another group"
    );
    if groups.insert(group) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, text).operation("subscribe"))
}

fn check_hold(subscription: &Subscription, longest: Option<Duration>) -> Result<()> {
    match (subscription.lease_time(), longest) {
        (lease, Some(longest)) if lease > longest => Err(Error::new(
            ErrorKind::Invalid,
            format!("a lease of {lease:?} is longer than the broker lets a delivery be held, {longest:?}"),
        )
        .operation("subscribe")),
        _ => Ok(()),
    }
}

fn threads() -> usize {
    tokio::runtime::Handle::current().metrics().num_workers().max(1)
}

/// What a loop needs beside its service.
struct Setup {
    subscription: Arc<Subscription>,
    source: Source,
    concurrency: usize,
    window: Window,
    drain_timeout: Duration,
    shutdown: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
}

/// A loop, boxed once for each subscription and core.
type Loop = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// What a loop did, and whether it was told to end.
type Ended = (Report, Result<()>);

/// A service whose type is forgotten.
trait Mount: Send {
    fn run(&self, setup: Setup) -> Loop;
}

struct Mounted<S>(S);

impl<S: Handler> Mount for Mounted<S> {
    fn run(&self, setup: Setup) -> Loop {
        let Setup { subscription, source, concurrency, window, pulse, .. } = setup;
        let Setup { drain_timeout, mut shutdown, .. } = setup;
        let service = self.0.clone();
        let shard = Shard::new(service, subscription, source, concurrency, window, pulse);
        Box::pin(shard.run(
            async move {
                // An error means that the running worker was dropped: stop too.
                let _ = shutdown.wait_for(|stop| *stop).await;
            },
            drain_timeout,
        ))
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subscriptions = self.mounts.iter().map(|(subscription, _)| subscription.stored_name());
        f.debug_struct("Worker")
            .field("broker", &self.broker)
            .field("subscriptions", &subscriptions.collect::<Vec<_>>())
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RunningWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningWorker").field("loops", &self.shards.len()).finish_non_exhaustive()
    }
}
