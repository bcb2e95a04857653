mod drain;
mod intake;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use self::drain::AT_ONCE;
use super::given_up::GivenUp;
use super::lanes::Lanes;
use super::leases::{LeaseSlot, Leases};
use super::parked::{Parked, Wait};
use super::policy;
use super::pulse::Pulse;
use super::report::Report;
use super::settling::{Kind, Settlements};
use super::slots::{Answer, Slots};
use super::source::Source;
use super::standstill::Standstill;
use super::timer::Timer;
use super::window::Window;
use crate::cause::while_handling;
use crate::handler::{caught, panicked};
use crate::{BoxError, Delivery, Error, ErrorKind, Message, Outcome, Result, Subscription};

/// How many messages a shard takes and starts before it lets other tasks of its thread run.
const BUDGET: usize = 512;

/// A failed attempt waits this long at most in the process, with its lease renewed; a longer delay
/// is the broker's.
const LONGEST_PARKED: Duration = Duration::from_secs(5);

/// A delivery that a handler gives back waits at least this long: in order it blocks its key, and
/// otherwise a handler that gives back all it sees would do so at full speed.
const SHORTEST_RELEASE: Duration = Duration::from_millis(50);

/// Where neither the broker nor the user sets a limit: the clock has one.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 365 * 30);

/// One of a subscription's loops: takes deliveries, runs them through the service, settles them.
///
/// It is one future that polls everything it owns, never a task for a message.
pub(super) struct Shard<S: Service<Message>> {
    service: S,
    /// Replaces the service when its `poll_ready` failed, after which tower forbids to use it.
    spare: S,
    subscription: Arc<Subscription>,
    source: Source,
    slots: Slots<S::Future, Held>,
    /// Ready to be handled, in order.
    queue: VecDeque<Held>,
    lanes: Option<Lanes<Held>>,
    parked: Parked,
    leases: Leases,
    settling: Settlements,
    received: Vec<Delivery>,
    /// How many consumers were opened.
    consumer: u32,
    /// Whether the consumer was asked last and had nothing, so that it waits for more.
    awaiting: bool,
    /// How many deliveries it asks for, and may hold.
    window: Window,
    /// When what the consumer holds beyond the window is to go back; see [`narrow`](Self::narrow).
    narrow_at: Option<Instant>,
    /// A longer wait would break what the broker allows a delivery to be held; it costs the order.
    longest_ordered_wait: Duration,
    /// Nothing new is started before, since a settlement, the service or the consumer failed.
    paused_until: Option<Instant>,
    /// Failures in a row of the settlements and the service.
    failures: u32,
    /// Failures in a row of the consumer.
    receive_failures: u32,
    timer: Timer,
    draining: bool,
    /// Whether the broker keeps what is left of a wait that the drain cuts off.
    keeps_waits: bool,
    report: Report,
    given_up: GivenUp,
    pulse: Arc<Pulse>,
    standstill: &'static Standstill,
}

/// A delivery in the shard's hands.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    lease: LeaseSlot,
    /// Which of the consumers that were opened one after the other handed it out.
    consumer: u32,
    /// In order, until when it can wait here: no broker lets it be held for ever.
    waits_until: Option<Instant>,
}

impl<S> Shard<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>> + Clone,
{
    pub(super) fn new(
        service: S,
        subscription: Arc<Subscription>,
        source: Source,
        concurrency: usize,
        window: Window,
        pulse: Arc<Pulse>,
    ) -> Self {
        // Twice what it holds: what is being settled keeps its lease until the broker has answered.
        let leases = Leases::start(source.lease(), 2 * window.most_held());
        let capabilities = source.capabilities();
        let longest_ordered_wait =
            capabilities.longest_hold.map_or(LONGEST_WAIT, |hold| hold / 4 * 3);
        let keeps_waits = capabilities.ordered_delays || !subscription.is_ordered();
        Self {
            spare: service.clone(),
            service,
            lanes: subscription.is_ordered().then(Lanes::new),
            subscription,
            source,
            slots: Slots::new(concurrency, Arc::clone(&pulse), |held| {
                Some(held.delivery.envelope())
            }),
            queue: VecDeque::new(),
            parked: Parked::default(),
            leases,
            settling: Settlements::new(),
            received: Vec::new(),
            consumer: 0,
            awaiting: false,
            window,
            narrow_at: None,
            longest_ordered_wait,
            paused_until: None,
            failures: 0,
            receive_failures: 0,
            timer: Timer::default(),
            draining: false,
            keeps_waits,
            report: Report::default(),
            given_up: GivenUp::default(),
            pulse,
            standstill: Standstill::watch(),
        }
    }

    /// Handles messages until `shutdown` resolves or the broker is closed; then finishes or gives
    /// back what it holds, within `drain_timeout`.
    ///
    /// # Errors
    /// `Closed` when the broker was closed underneath, after the same drain.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        drain_timeout: Duration,
    ) -> (Report, Result<()>) {
        let ended = tokio::select! {
            biased;
            () = shutdown => Ok(()),
            error = poll_fn(|cx| {
                let polled = self.poll_run(cx);
                self.pulse.note(self.report);
                polled
            }) => Err(error),
        };
        self.drain(drain_timeout).await;
        self.given_up.count(&self.subscription);
        (self.report, ended)
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.slots.register(cx.waker());
        if let Some(grace) = self.standstill.grace(std::time::Instant::now()) {
            let until = Instant::now() + grace;
            self.paused_until = self.paused_until.max(Some(until));
        }
        let mut budget = BUDGET;
        loop {
            // Handlers last: those that always have something to do leave nothing of the share of
            // steps that tokio gives the task.
            let mut progress = self.poll_settling(cx);
            let now = self.now_if_timed();
            self.resume(now);
            self.count_given_up(now);
            progress |= self.unpark(now);
            progress |= self.set_aside();
            progress |= self.dispatch(cx, &mut budget);
            self.fit_window(now);
            if let Err(error) = self.narrow(cx, now) {
                return Poll::Ready(error);
            }
            match self.poll_receive(cx, &mut budget) {
                Poll::Ready(Ok(())) => progress = true,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => {}
            }
            progress |= self.poll_finished();
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !progress && self.poll_timer(cx).is_pending() {
                self.window.starve(if self.awaiting { self.slots.free() } else { 0 });
                return Poll::Pending;
            }
        }
    }

    /// The time, when anything waits for one: the clock costs as much as a message. For the next
    /// look at the window the timer is enough, or a loop that reads ahead would always ask.
    fn now_if_timed(&mut self) -> Option<Instant> {
        let timed = self.timer.take_fired()
            || !self.parked.is_empty()
            || self.paused_until.is_some()
            || self.narrow_at.is_some()
            || self.window.is_sampled();
        timed.then(Instant::now)
    }

    fn resume(&mut self, now: Option<Instant>) {
        if self.paused_until.is_some_and(|until| now.is_some_and(|now| now >= until)) {
            self.paused_until = None;
        }
    }

    fn count_given_up(&mut self, now: Option<Instant>) {
        if self.given_up.next_count().is_some_and(|at| now.is_some_and(|now| now >= at)) {
            self.given_up.count(&self.subscription);
        }
    }

    /// Starts nothing new for a while; answers the failures in a row, after each of which it is
    /// longer. What fails together, as with a connection, is one failure.
    fn pause(&mut self, failures: u32) -> u32 {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| now < until) {
            return failures;
        }
        let failures = failures.saturating_add(1);
        self.paused_until = Some(now + policy::reconnect_delay(failures));
        failures
    }

    /// The next time at which there is something to do.
    fn next_time(&self) -> Option<Instant> {
        let window = [self.window.next_look(), self.narrow_at];
        // A loop that drains receives nothing, and looks at its window no more.
        let window = window.into_iter().flatten().filter(|_| !self.draining);
        let given_up = self.given_up.next_count();
        window.chain(self.parked.next_due()).chain(self.paused_until).chain(given_up).min()
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.next_time().map_or(Poll::Pending, |due| self.timer.poll(cx, due))
    }

    fn dispatch(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> bool {
        let mut progress = false;
        while *budget > 0
            && self.paused_until.is_none()
            && !self.queue.is_empty()
            && self.slots.free() > 0
        {
            let ready = caught(|| match self.service.poll_ready(cx) {
                Poll::Ready(Err(error)) => Err(error.into()),
                Poll::Ready(Ok(())) => Ok(true),
                Poll::Pending => Ok(false),
            });
            match ready {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "the handler's service is not ready");
                    self.service = self.spare.clone();
                    self.failures = self.pause(self.failures);
                    break;
                }
            }
            let Some(held) = self.queue.pop_front() else { break };
            progress = true;
            *budget -= 1;
            if held.delivery.is_lost() {
                self.give_up(held);
                continue;
            }
            let message = Message::new(
                Arc::clone(held.delivery.envelope()),
                Arc::clone(&self.subscription),
                held.delivery.attempt(),
            );
            let kind = || held.delivery.envelope().r#type.clone().into_owned();
            // A panic of `call` must cost its own message an attempt, and no other one anything.
            let envelope = held.delivery.envelope();
            let call = || while_handling(Some(envelope), || self.service.call(message));
            let called = self.pulse.step(kind, || catch_unwind(AssertUnwindSafe(call)));
            match called {
                Ok(future) => {
                    if let Some((held, answer)) = self.slots.start(future, held) {
                        self.finish(held, answer);
                    }
                }
                Err(panic) => self.finish(held, Err(panic)),
            }
        }
        progress
    }

    fn poll_finished(&mut self) -> bool {
        let mut progress = false;
        while let Some((held, answer)) = self.slots.next_finished() {
            self.finish(held, answer);
            progress = true;
        }
        progress
    }

    /// Settles what a handler has answered, or parks it for its next attempt.
    fn finish(&mut self, mut held: Held, answer: Answer<Result<Outcome, S::Error>>) {
        self.window.finish();
        let (attempt, envelope) = (held.delivery.attempt(), held.delivery.envelope());
        let limit = self.subscription.delivery_limit();
        let of_error = |error: BoxError| policy::outcome_of(error, attempt, limit, envelope);
        let outcome = match answer {
            Ok(Ok(Outcome::Retry { .. })) if limit.is_some_and(|limit| attempt >= limit) => {
                policy::last_retry(attempt)
            }
            Ok(Ok(outcome)) => outcome,
            // What an error says of itself is the user's code too.
            Ok(Err(error)) => caught(|| Ok(of_error(error.into()))).unwrap_or_else(of_error),
            Err(panic) => of_error(panicked(&*panic)),
        };
        let next = match outcome {
            Outcome::Retry { after } if self.parks(after, held.waits_until) => {
                self.report.retried += 1;
                held.delivery.note_failure();
                self.parked.push(Instant::now() + after, held, Wait::Retry);
                None
            }
            // Given back to the broker, it would come again behind the later ones of its key.
            Outcome::Release { after }
                if self.lanes.is_some() && self.parks(after, held.waits_until) =>
            {
                self.report.released += 1;
                let due = Instant::now() + after.max(SHORTEST_RELEASE);
                self.parked.push(due, held, Wait::Release);
                None
            }
            Outcome::Release { after }
                if after < SHORTEST_RELEASE && self.parks(after, held.waits_until) =>
            {
                self.parked.push(Instant::now() + SHORTEST_RELEASE, held, Wait::GiveBack);
                None
            }
            outcome => {
                let kind = Kind::of(&outcome);
                self.settle(held, outcome, kind)
            }
        };
        self.admit(next);
    }

    fn parks(&self, after: Duration, until: Option<Instant>) -> bool {
        match until {
            _ if self.draining && self.keeps_waits => false,
            Some(until) => {
                until.checked_duration_since(Instant::now()).is_some_and(|left| after <= left)
            }
            None => after <= LONGEST_PARKED && self.parked.len() < self.window.most_parked(),
        }
    }

    /// Settles a delivery and answers the next one of its lane.
    fn settle(&mut self, held: Held, outcome: Outcome, kind: Kind) -> Option<Held> {
        if let Outcome::DeadLetter { reason } = &outcome {
            self.given_up.say(&self.subscription, &held.delivery, reason);
        }
        let keep = self.lanes.is_some() || self.settling.are_awaited();
        let envelope = keep.then(|| Arc::clone(held.delivery.envelope()));
        let mut confirmation = held.delivery.settle(outcome);
        match confirmation.take_ready() {
            Some(result) => self.settled(kind, held.lease, result),
            None => self.settling.push(kind, held.lease, confirmation, envelope.clone()),
        }
        let key = envelope.as_ref()?.key.as_deref()?;
        self.lanes.as_mut()?.leave(key)
    }

    /// Gives back what is lost, and does not only drop it: where it is nobody else's yet, since its
    /// partition is about to leave, that keeps its attempts. Mostly it is too late.
    ///
    /// What follows it in its lane goes back with it, lost or not: handled now, it would pass those
    /// that come again. Where what follows came by a new consumer or stream, those have come.
    fn give_up(&mut self, held: Held) {
        let came_by = |held: &Held| (held.consumer, held.delivery.stream());
        let lost = came_by(&held);
        let mut next = self.settle(held, AT_ONCE, Kind::Released);
        while let Some(held) = next.take_if(|next| came_by(next) == lost) {
            next = self.settle(held, AT_ONCE, Kind::Released);
        }
        self.admit(next);
    }

    fn poll_settling(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready((kind, lease, result)) = self.settling.poll_next(cx) {
            self.settled(kind, lease, result);
            progress = true;
        }
        progress
    }

    fn settled(&mut self, kind: Kind, lease: LeaseSlot, result: Result<()>) {
        self.leases.let_go(lease);
        match result {
            Ok(()) => {
                self.failures = 0;
                kind.count(&mut self.report);
            }
            Err(error) if error.kind() == ErrorKind::StaleDelivery => {
                tracing::debug!(%error, "a settlement came too late");
                self.report.stale += 1;
            }
            Err(error) => {
                tracing::warn!(%error, subscription = %self.subscription.stored_name(), "a settlement failed");
                self.report.unsettled += 1;
                self.failures = self.pause(self.failures);
            }
        }
    }
}
