use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use anybroker_core::adapter::Room;
use anybroker_core::{
    Capabilities, Confirmation, Confirmer, Envelope, ErrorKind, Hop, Outgoing, Producer, Result,
    RetryClass,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::error::{BROKER, closed, error_of, failed, is_replica, unanswered};
use crate::layout::Layout;
use crate::link::Link;
use crate::message::write;
use crate::scripts::DELAY;
use crate::settle::millis;
use crate::topology::Topology;

/// The most messages and bytes of a pipeline, and how many pipelines are on their way.
const LOT: usize = 512;
const BYTES: usize = 1024 * 1024;
const PIPELINES: usize = 4;

/// Between attempts that fail at once.
const PAUSE: Duration = Duration::from_millis(50);

/// A handle to publish with.
pub(crate) struct RedisProducer {
    pub(crate) open: Arc<AtomicBool>,
    pub(crate) capabilities: Capabilities,
    pub(crate) topology: Arc<Topology>,
    pub(crate) jobs: mpsc::UnboundedSender<Job>,
    pub(crate) room: Room,
}

/// A message on its way.
pub(crate) struct Job {
    layout: Arc<Layout>,
    envelope: Envelope,
    hop: Hop,
    /// How long the server is to keep it back.
    delay: Option<Duration>,
    deadline: Instant,
    confirmer: Option<Confirmer>,
}

impl RedisProducer {
    fn job(&self, outgoing: Outgoing) -> Result<(Job, Confirmation)> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(closed("publish"));
        }
        outgoing.check(&self.capabilities)?;
        let hop = outgoing.hop();
        let Outgoing { destination, envelope, delay, .. } = outgoing;
        let layout = self.topology.layout(&destination)?;
        let (confirmer, confirmation) =
            self.room.channel(&envelope).map_err(|error| error.broker(BROKER))?;
        let job = Job {
            hop,
            // Each group of a topic parks it, those to come too. In order, it keeps its place.
            delay: delay.filter(|delay| {
                !delay.is_zero() && !destination.is_topic() && !destination.is_ordered()
            }),
            layout,
            envelope,
            deadline: Instant::now() + self.topology.settings.options.publish_timeout,
            confirmer: Some(confirmer),
        };
        Ok((job, confirmation))
    }
}

impl Producer for RedisProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        match self.job(outgoing) {
            Err(error) => Confirmation::ready(Err(error)),
            Ok((job, confirmation)) => match self.jobs.send(job) {
                Ok(()) => confirmation,
                Err(_) => Confirmation::ready(Err(closed("publish"))),
            },
        }
    }
}

impl fmt::Debug for RedisProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisProducer").finish_non_exhaustive()
    }
}

impl Job {
    fn command(&self) -> Cmd {
        let partition = self.layout.partition(self.envelope.key.as_deref(), &self.envelope.id);
        let mut command = Cmd::with_capacity(32, 512 + self.envelope.payload.len());
        if let Some(delay) = self.delay {
            command.arg("EVAL").arg(DELAY).arg(1).arg(&self.layout.delayed[partition]);
            command.arg(millis(delay)).arg(fastrand::u128(..).to_string());
        } else {
            command.arg("XADD").arg(&self.layout.streams[partition]).arg("*");
        }
        write(&self.envelope, &self.hop, |name, value| {
            command.arg(name).arg(value);
        });
        command
    }

    fn answer(&mut self, result: Result<()>) {
        if let Some(confirmer) = self.confirmer.take() {
            confirmer.confirm(result);
        }
    }
}

/// The task that publishes: in pipelines, several on their way, in the order of the calls.
pub(crate) struct Writer {
    pub(crate) link: Arc<Link>,
    pub(crate) topology: Arc<Topology>,
}

/// Messages that wait for their destination, which cannot be declared for now, in their order.
/// Those of other destinations go on meanwhile.
struct HeldBack {
    jobs: VecDeque<Job>,
    layouts: Vec<Arc<Layout>>,
    again: Instant,
}

type Flight = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Writer {
    pub(crate) async fn run(
        self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut draining: watch::Receiver<bool>,
    ) {
        let mut flights = FuturesUnordered::<Flight>::new();
        let (mut taken, mut lot) = (Vec::with_capacity(LOT), VecDeque::new());
        let mut held_back =
            HeldBack { jobs: VecDeque::new(), layouts: Vec::new(), again: Instant::now() };
        let (mut more, mut open) = (true, true);
        loop {
            tokio::select! {
                Some(()) = flights.next() => continue,
                count = jobs.recv_many(&mut taken, LOT), if more && flights.len() < PIPELINES => {
                    more = count > 0;
                }
                () = sleep_until(held_back.again), if !held_back.jobs.is_empty() => {
                    held_back.layouts.clear();
                    lot.append(&mut held_back.jobs);
                }
                _ = draining.changed(), if open => {
                    open = false;
                    jobs.close();
                    continue;
                }
                else => break,
            }
            lot.extend(taken.drain(..));
            while !lot.is_empty() {
                // What is on its way goes on meanwhile.
                let mut next = std::pin::pin!(self.fly(&mut lot, &mut held_back));
                let flight = loop {
                    tokio::select! {
                        biased;
                        flight = &mut next => break flight,
                        Some(()) = flights.next() => {}
                    }
                };
                if let Some(mut flight) = flight {
                    // Begun here, pipelines are written in this order.
                    let begun = poll_fn(|cx| Poll::Ready(flight.as_mut().poll(cx))).await;
                    if begun.is_pending() {
                        flights.push(flight);
                    }
                }
            }
        }
    }

    /// Makes a pipeline of the first jobs. Those that cannot be sent yet stay, until their time is
    /// over.
    async fn fly(&self, lot: &mut VecDeque<Job>, held_back: &mut HeldBack) -> Option<Flight> {
        let deadline = lot.front()?.deadline;
        let connection = match timeout_at(deadline, self.link.get()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => {
                lot.drain(..).for_each(|mut job| job.answer(Err(closed("publish"))));
                return None;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no connection to publish on");
                expire(lot, "the server cannot be reached; the message was not sent");
                sleep(PAUSE).await;
                return None;
            }
            Err(_) => {
                expire(lot, "the server cannot be reached; the message was not sent");
                return None;
            }
        };
        let (mut jobs, mut bytes) = (Vec::with_capacity(lot.len()), 0);
        while let Some(mut job) = lot.pop_front() {
            if held_back.layouts.iter().any(|layout| Arc::ptr_eq(layout, &job.layout)) {
                held_back.jobs.push_back(job);
                continue;
            }
            if !jobs.is_empty() && !job.layout.declared.load(Ordering::Relaxed) {
                // Declaring takes its time: what comes before is sent first.
                lot.push_front(job);
                break;
            }
            match timeout_at(job.deadline, self.topology.ensure(&job.layout)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.retry_class() == RetryClass::Permanent => {
                    job.answer(Err(error));
                    continue;
                }
                failed => {
                    tracing::debug!(?failed, "declaring failed");
                    held_back.layouts.push(Arc::clone(&job.layout));
                    held_back.jobs.push_back(job);
                    held_back.again = Instant::now() + PAUSE;
                    continue;
                }
            }
            bytes += job.envelope.payload.len() + Room::OVERHEAD;
            jobs.push(job);
            if bytes > BYTES {
                break;
            }
        }
        expire(
            &mut held_back.jobs,
            "the destination could not be declared; the message was not sent",
        );
        if jobs.is_empty() {
            return None;
        }
        let mut pipeline = Pipeline::with_capacity(jobs.len());
        for job in &jobs {
            pipeline.add_command(job.command());
        }
        let link = Arc::clone(&self.link);
        Some(Box::pin(async move {
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
            // A replica answers for ever, and takes nothing.
            let of_use = |value: &Value| !matches!(value, Value::ServerError(error) if is_replica(&error.clone().into()));
            if !matches!(&answer, Some(Ok(values)) if values.iter().all(of_use)) {
                link.broken(epoch).await;
            }
            if let Some(answer) = answer {
                settle(jobs, answer);
            }
        }))
    }
}

/// Answers each with its own result.
fn settle(jobs: Vec<Job>, answer: Result<Vec<Value>, RedisError>) {
    let mut values = match answer {
        Ok(values) => values.into_iter(),
        Err(error) => {
            for mut job in jobs {
                job.answer(Err(unanswered("publish", "waiting for the answer", error.clone())));
            }
            return;
        }
    };
    for mut job in jobs {
        job.answer(match values.next() {
            Some(Value::ServerError(error)) => {
                Err(failed("publish", &job.layout.name, RedisError::from(error)))
            }
            Some(_) => Ok(()),
            None => Err(error_of(ErrorKind::Broker, "publish", "the server answered too little")
                .class(RetryClass::Ambiguous)),
        });
    }
}

/// Answers those whose time is over; nothing of them was sent.
fn expire(lot: &mut VecDeque<Job>, text: &'static str) {
    let now = Instant::now();
    lot.retain_mut(|job| {
        let late = job.deadline <= now;
        if late {
            let error = error_of(ErrorKind::Timeout, "publish", text);
            job.answer(Err(error.class(RetryClass::Transient)));
        }
        !late
    });
}
