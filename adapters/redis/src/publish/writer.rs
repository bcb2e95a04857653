//! The task that publishes: in pipelines, several on their way, in the order of the calls.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{Declare, ErrorKind, Result, RetryClass};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::ConnectionLike;
use redis::{Pipeline, RedisError, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Job;
use crate::error::{closed, error_of, failed, is_replica, unanswered};
use crate::layout::Layout;
use crate::link::{Link, Numbered};
use crate::topology::{Topology, missing};

/// The most messages and bytes of a pipeline, and how many pipelines are on their way.
const LOT: usize = 512;
const BYTES: usize = 1024 * 1024;
const PIPELINES: usize = 4;

/// Between attempts that fail at once.
const PAUSE: Duration = Duration::from_millis(50);

/// The task that publishes: in pipelines, several on their way, in the order of the calls.
pub(crate) struct Writer {
    link: Arc<Link>,
    topology: Arc<Topology>,
    /// What is to be sent.
    lot: VecDeque<Job>,
    held_back: HeldBack,
    /// How many messages were taken so far.
    taken: u64,
}

/// Messages that wait until their destination can be declared, or the server takes messages, in
/// their order. Those of other destinations go on meanwhile.
struct HeldBack {
    jobs: VecDeque<Job>,
    layouts: Vec<Arc<Layout>>,
    again: Instant,
}

/// A pipeline on its way; resolves to what the server did not take, and may take later.
type Flight = Pin<Box<dyn Future<Output = Vec<Job>> + Send>>;

impl Writer {
    pub(crate) fn new(link: Arc<Link>, topology: Arc<Topology>) -> Self {
        let held_back =
            HeldBack { jobs: VecDeque::new(), layouts: Vec::new(), again: Instant::now() };
        Self { link, topology, lot: VecDeque::new(), held_back, taken: 0 }
    }

    pub(crate) async fn run(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut draining: watch::Receiver<bool>,
    ) {
        let mut flights = FuturesUnordered::<Flight>::new();
        let mut taken = Vec::with_capacity(LOT);
        let (mut more, mut open) = (true, true);
        loop {
            tokio::select! {
                Some(back) = flights.next() => {
                    self.hold_back(back);
                    continue;
                }
                count = jobs.recv_many(&mut taken, LOT), if more && flights.len() < PIPELINES => {
                    more = count > 0;
                }
                () = sleep_until(self.held_back.again), if !self.held_back.jobs.is_empty() => {
                    self.held_back.layouts.clear();
                    self.lot.append(&mut self.held_back.jobs);
                }
                _ = draining.changed(), if open => {
                    open = false;
                    jobs.close();
                    continue;
                }
                else => break,
            }
            for mut job in taken.drain(..) {
                job.number = self.taken;
                self.taken += 1;
                self.lot.push_back(job);
            }
            while !self.lot.is_empty() {
                let mut back = Vec::new();
                let flight = {
                    // What is on its way goes on meanwhile.
                    let mut next = pin!(self.fly());
                    loop {
                        tokio::select! {
                            biased;
                            flight = &mut next => break flight,
                            Some(refused) = flights.next() => back.extend(refused),
                        }
                    }
                };
                if let Some(mut flight) = flight {
                    // Begun here, pipelines are written in this order.
                    match poll_fn(|cx| Poll::Ready(flight.as_mut().poll(cx))).await {
                        Poll::Ready(refused) => back.extend(refused),
                        Poll::Pending => flights.push(flight),
                    }
                }
                self.hold_back(back);
            }
        }
    }

    /// Makes a pipeline of the first jobs. Those that cannot be sent yet stay, until their time is
    /// over.
    async fn fly(&mut self) -> Option<Flight> {
        let connection = self.connection().await?;
        let (mut jobs, mut bytes) = (Vec::with_capacity(self.lot.len()), 0);
        while let Some(mut job) = self.lot.pop_front() {
            if self.held_back.holds(&job.layout) {
                self.held_back.keep(job);
                continue;
            }
            if !jobs.is_empty() && !job.layout.declared.load(Ordering::Relaxed) {
                // Declaring takes its time: what comes before is sent first.
                self.lot.push_front(job);
                break;
            }
            // The deadline ends this message's wait only: declaring goes on for those behind it.
            match timeout_at(job.deadline, self.topology.ensure(&job.layout)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.retry_class() == RetryClass::Permanent => {
                    job.answer(Err(error));
                    continue;
                }
                failed => {
                    tracing::debug!(?failed, "declaring failed");
                    self.hold_back(vec![job]);
                    continue;
                }
            }
            bytes += job.envelope.payload.len() + Room::OVERHEAD;
            jobs.push(job);
            if bytes > BYTES {
                break;
            }
        }
        self.held_back.expire();
        if jobs.is_empty() {
            return None;
        }
        Some(Box::pin(send(Arc::clone(&self.link), connection, jobs)))
    }

    /// Waits for a connection, for as long as the first message may.
    async fn connection(&mut self) -> Option<Numbered> {
        let now = Instant::now();
        if self.lot.front()?.deadline <= now {
            self.expire();
        }
        let first = self.lot.front()?.deadline;
        let deadline = self.held_back.jobs.front().map_or(first, |job| job.deadline.min(first));
        match timeout_at(deadline, self.link.get()).await {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => {
                self.lot.append(&mut self.held_back.jobs);
                self.lot.drain(..).for_each(|mut job| job.answer(Err(closed("publish"))));
                return None;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no connection to publish on");
                sleep(PAUSE).await;
            }
            Err(_) => {}
        }
        self.expire();
        self.held_back.expire();
        None
    }

    /// Gives up what no connection came for in time.
    fn expire(&mut self) {
        let mut text = Cow::from("the server cannot be reached; the message was not sent");
        if let Some(cause) = self.link.outage() {
            text = format!("{text}; {cause}").into();
        }
        expire(&mut self.lot, &text);
    }

    /// Keeps messages for another attempt, and all that follow to the same destinations.
    fn hold_back(&mut self, back: Vec<Job>) {
        for mut job in back {
            let layout = &job.layout;
            let declares = self.topology.settings.options.declare != Declare::Off;
            if !declares && !layout.declared.load(Ordering::Relaxed) {
                let error = missing("publish", &layout.name);
                job.answer(Err(error));
                continue;
            }
            if !self.held_back.holds(layout) {
                self.held_back.layouts.push(Arc::clone(layout));
            }
            self.held_back.keep(job);
            self.held_back.again = Instant::now() + PAUSE;
        }
    }
}

impl HeldBack {
    fn holds(&self, layout: &Arc<Layout>) -> bool {
        self.layouts.iter().any(|held| Arc::ptr_eq(held, layout))
    }

    /// Keeps one in its place, which is mostly the last.
    fn keep(&mut self, job: Job) {
        let place = self.jobs.partition_point(|other| other.number < job.number);
        self.jobs.insert(place, job);
    }

    fn expire(&mut self) {
        let text = "the destination could not be declared, or the server takes no messages; the message was not sent";
        expire(&mut self.jobs, text);
    }
}

/// Sends a pipeline; resolves to what the server did not take, and may take later.
async fn send(link: Arc<Link>, connection: Numbered, mut jobs: Vec<Job>) -> Vec<Job> {
    let mut pipeline = Pipeline::with_capacity(jobs.len());
    for job in &jobs {
        pipeline.add_command(job.command());
    }
    let (epoch, mut connection) = connection;
    let mut sent = pin!(connection.req_packed_commands(&pipeline, 0, jobs.len()));
    // Each waits until its own time is over, not until that of the one before it.
    let mut answer = None;
    for job in &mut jobs {
        match timeout_at(job.deadline, &mut sent).await {
            Ok(answered) => {
                answer = Some(answered);
                break;
            }
            Err(_) => {
                let text = "the server did not answer within the publish timeout";
                job.answer(Err(error_of(ErrorKind::Timeout, "publish", text)));
            }
        }
    }
    let of_use = |value: &Value| !matches!(value, Value::ServerError(error) if is_replica(&error.clone().into()));
    if !matches!(&answer, Some(Ok(values)) if values.iter().all(of_use)) {
        link.broken(epoch);
    }
    match answer {
        Some(answer) => settle(jobs, answer),
        None => Vec::new(),
    }
}

/// Answers each with its own result, but for those that may be sent again: the server has carried
/// out nothing of them.
fn settle(jobs: Vec<Job>, answer: Result<Vec<Value>, RedisError>) -> Vec<Job> {
    let mut values = match answer {
        Ok(values) => values.into_iter(),
        Err(error) => {
            for mut job in jobs {
                job.answer(Err(unanswered("publish", "waiting for the answer", error.clone())));
            }
            return Vec::new();
        }
    };
    let mut back = Vec::new();
    for mut job in jobs {
        let result = match values.next() {
            Some(Value::ServerError(error)) => {
                let error = RedisError::from(error);
                if is_replica(&error) {
                    // Another server takes it: this one answers for ever, and takes nothing.
                    back.push(job);
                    continue;
                }
                Err(failed("publish", &job.layout.name, error))
            }
            Some(Value::Nil) => {
                // Somebody deleted its stream: it is declared again.
                job.layout.declared.store(false, Ordering::Relaxed);
                back.push(job);
                continue;
            }
            Some(_) => Ok(()),
            None => Err(error_of(ErrorKind::Broker, "publish", "the server answered too little")
                .class(RetryClass::Ambiguous)),
        };
        job.answer(result);
    }
    // Whoever was told that their time is over sends it again, if they want to.
    back.retain(|job| job.confirmer.is_some());
    back
}

/// Answers those whose time is over; nothing of them was sent.
fn expire(lot: &mut VecDeque<Job>, text: &str) {
    let now = Instant::now();
    lot.retain_mut(|job| {
        let late = job.deadline <= now;
        if late {
            let error = error_of(ErrorKind::Timeout, "publish", text.to_owned());
            job.answer(Err(error.class(RetryClass::Transient)));
        }
        !late
    });
}
