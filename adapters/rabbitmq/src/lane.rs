#![expect(clippy::vec_box, reason = "a job moves through two queues; its box moves cheaper")]

use std::borrow::Cow;
use std::collections::HashSet;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Declare, Error, ErrorKind, Result, RetryClass};
use futures_util::{FutureExt, TryFutureExt};
use lapin::Channel;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::error::{closed, error_of, failed};
use crate::link::{Link, while_open};
use crate::message::{properties, property};
use crate::publish::{Job, Target};
use crate::topology::{Helper, Topology};

/// The most messages of a lot.
const LOT: usize = 256;

/// Between attempts that fail at once.
const PAUSE: Duration = Duration::from_millis(50);

/// The one task that writes a channel: two would swap its delivery tags.
///
/// It sends in lots, and answers a lot when all of it is confirmed: the client hands a returned
/// message to whichever confirm comes next, so that only the whole lot tells which were returned.
pub(crate) struct Lane {
    link: Link,
    topology: Arc<Topology>,
    channel: Option<Channel>,
    /// A task, since the messages that wait for the channel may run out of time.
    opening: Option<JoinHandle<Result<Channel>>>,
    frame_max: usize,
    draining: watch::Receiver<bool>,
}

/// A message that the client has: what became of it, and a returned message that came with it.
type Flight<'a> = Pin<Box<dyn Future<Output = (Fate, Option<Key>)> + Send + 'a>>;

/// Exchange, routing key and id: what tells a returned message from the others of its lot.
type Key = (ShortString, ShortString, ShortString);

enum Fate {
    Acked,
    Refused,
    /// No queue has it.
    Returned,
    /// The broker never had it whole.
    Unwritten,
    Unanswered(lapin::Error),
    /// Nothing is known when its time is over.
    Late,
    /// The connection cannot carry its headers.
    Unfit(usize),
}

impl Lane {
    /// A lane that ends, with all sent, when `draining` changes.
    pub(crate) fn new(
        link: Link,
        topology: Arc<Topology>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        Self { link, topology, channel: None, opening: None, frame_max: 0, draining }
    }

    pub(crate) async fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Box<Job>>) {
        let mut lot = Vec::with_capacity(LOT);
        let mut open = true;
        loop {
            tokio::select! {
                count = jobs.recv_many(&mut lot, LOT) => {
                    if count == 0 {
                        return;
                    }
                    while !lot.is_empty() {
                        self.publish(&mut lot).await;
                    }
                }
                _ = self.draining.changed(), if open => {
                    open = false;
                    jobs.close();
                }
            }
        }
    }

    /// Sends the lot. What is left in it afterwards was not sent, and has time left.
    async fn publish(&mut self, lot: &mut Vec<Box<Job>>) {
        // The first waits longest.
        let channel = match timeout_at(lot[0].deadline, self.channel()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => {
                lot.drain(..).for_each(|mut job| job.answer(Err(closed("publish"))));
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no channel to publish on");
                sleep(PAUSE).await;
                return self.expire(lot);
            }
            Err(_) => return self.expire(lot),
        };
        if !self.declare(lot).await {
            return self.expire(lot);
        }
        let (mut fates, returned) = self.send(&channel, lot).await;
        for (fate, job) in fates.iter_mut().zip(&*lot) {
            if !returned.is_empty()
                && !matches!(fate, Fate::Unwritten | Fate::Unfit(_))
                && returned.contains(&key(job))
            {
                *fate = Fate::Returned;
            }
        }
        if self.repeat_refused(&mut fates, lot) {
            sleep(PAUSE).await;
        }
        let complete = fates.iter().all(|fate| !matches!(fate, Fate::Unanswered(_) | Fate::Late));
        if !complete {
            // A return that still comes would be taken for one of the next lot.
            self.channel = None;
        }
        let mut unwritten = Vec::new();
        // What waits for queues that are new must not hold up the next lot.
        let (new_until, mut answers) = (self.topology.new_until(), Vec::new());
        for (fate, mut job) in fates.into_iter().zip(lot.drain(..)) {
            let answer = match fate {
                Fate::Unwritten => {
                    unwritten.push(job);
                    continue;
                }
                Fate::Unfit(size) => Err(self.unfit(size)),
                Fate::Returned => Err(self.unroutable(&job.target)),
                // A return comes before its confirm, but may wait behind another return.
                Fate::Acked if complete || returned.is_empty() => Ok(()),
                Fate::Acked => {
                    let text = "the connection ended before it was known whether any group has the message";
                    Err(ambiguous(ErrorKind::Unavailable, text))
                }
                Fate::Refused => Err(refused(&job.target)),
                Fate::Unanswered(error) => Err(self.unanswered(&job.target, error)),
                Fate::Late => Err(self.late()),
            };
            match new_until {
                Some(_) => answers.push((job, answer)),
                None => job.answer(answer),
            }
        }
        if let Some(until) = new_until {
            self.answer_at(until, answers);
        }
        *lot = unwritten;
        self.expire(lot);
    }

    /// Answers later; until then the broker's `close` waits.
    fn answer_at(&self, until: Instant, answers: Vec<(Box<Job>, Result<()>)>) {
        let draining = self.draining.clone();
        tokio::spawn(async move {
            sleep_until(until).await;
            for (mut job, answer) in answers {
                job.answer(answer);
            }
            drop(draining);
        });
    }

    /// Hands all messages to the client, and waits for what becomes of each.
    async fn send(&self, channel: &Channel, lot: &mut [Box<Job>]) -> (Vec<Fate>, HashSet<Key>) {
        let mut confirmers: Vec<_> = lot.iter_mut().map(|job| job.confirmer.take()).collect();
        let mut flights: Vec<_> = lot.iter().map(|job| self.fly(channel, job)).collect();
        let mut fates = Vec::with_capacity(lot.len());
        let mut returned = HashSet::new();
        // How many have been answered since their time was over.
        let mut late = 0;
        // The last first: when it is confirmed, most of the others are, and need no waiting.
        while let Some(mut flight) = flights.pop() {
            let fate = loop {
                if let Some((fate, key)) = flight.as_mut().now_or_never() {
                    returned.extend(key);
                    break fate;
                }
                let Some(job) = lot.get(late) else { break Fate::Late };
                match timeout_at(job.deadline, flight.as_mut()).await {
                    Ok((fate, key)) => {
                        returned.extend(key);
                        break fate;
                    }
                    Err(_) => {
                        if let Some(confirmer) = confirmers[late].take() {
                            confirmer.confirm(Err(self.late()));
                        }
                        late += 1;
                    }
                }
            };
            fates.push(fate);
        }
        fates.reverse();
        drop(flights);
        for (job, confirmer) in lot.iter_mut().zip(confirmers) {
            job.confirmer = confirmer;
        }
        (fates, returned)
    }

    /// Hands a message to the client, whose queue keeps the order of these calls.
    fn fly<'a>(&self, channel: &'a Channel, job: &'a Job) -> Flight<'a> {
        let held = job.target.needs.helper.as_ref().map_or(Duration::ZERO, Helper::holds);
        let (properties, size) = properties(&job.envelope, &job.hop, held);
        // Everything that is no header takes far less than this.
        if size + 2048 > self.frame_max {
            return Box::pin(ready((Fate::Unfit(size), None)));
        }
        let mut flight: Flight<'a> = Box::pin(async move {
            let Target { exchange, routing_key, mandatory, .. } = &job.target;
            let options = BasicPublishOptions { mandatory: *mandatory, immediate: false };
            let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
            let payload = &job.envelope.payload;
            let written =
                channel.basic_publish(exchange, routing_key, options, payload, properties).await;
            let Ok(confirm) = written else { return (Fate::Unwritten, None) };
            match confirm.await {
                Err(error) => (Fate::Unanswered(error), None),
                Ok(confirmation) => {
                    let fate = if confirmation.is_ack() { Fate::Acked } else { Fate::Refused };
                    let key = confirmation.take_message().map(|returned| {
                        let delivery = returned.delivery;
                        let id = delivery.properties.message_id().clone();
                        (delivery.exchange, delivery.routing_key, id.unwrap_or_else(|| "".into()))
                    });
                    (fate, key)
                }
            }
        });
        match flight.as_mut().now_or_never() {
            Some(ended) => Box::pin(ready(ended)),
            None => flight,
        }
    }

    /// The channel, or a new one.
    ///
    /// # Cancel safety
    /// What is being opened is opened further, and is there for the next call.
    async fn channel(&mut self) -> Result<Channel> {
        let connection = self.link.writable("publish").await?;
        match &self.channel {
            Some(channel) if channel.status().connected() => return Ok(channel.clone()),
            _ => self.channel = None,
        }
        let opening = self.opening.get_or_insert_with(|| {
            let link = self.link.clone();
            tokio::spawn(async move {
                let channel = link.channel("publish").await?;
                let lost = |error| failed("publish", "opening a channel", error);
                let select = channel.confirm_select(ConfirmSelectOptions::default());
                while_open("publish", &channel, select.map_err(lost)).await?;
                Ok(channel)
            })
        });
        let opened = opening.await;
        self.opening = None;
        let channel = opened.unwrap_or_else(|_| Err(closed("publish")))?;
        let frame_max = connection.configuration().frame_max();
        self.frame_max = usize::try_from(frame_max).unwrap_or(usize::MAX);
        Ok(self.channel.insert(channel).clone())
    }

    /// Declares what the lot needs and answers what cannot be; tells whether the rest can be sent.
    async fn declare(&self, lot: &mut Vec<Box<Job>>) -> bool {
        let mut index = 0;
        while let Some(job) = lot.get(index) {
            if self.topology.is_declared(&job.target.needs) {
                index += 1;
                continue;
            }
            match timeout_at(job.deadline, self.topology.ensure(&job.target.needs)).await {
                // That may have taken a while.
                Ok(Ok(())) => match lot[index].catch_up() {
                    Ok(true) => {}
                    Ok(false) => index += 1,
                    Err(error) => lot.remove(index).answer(Err(error)),
                },
                Ok(Err(error)) if error.kind() == ErrorKind::Unavailable => {
                    sleep(PAUSE).await;
                    return false;
                }
                Ok(Err(error)) => lot.remove(index).answer(Err(error)),
                Err(_) => return false,
            }
        }
        !lot.is_empty()
    }

    /// Answers those whose time is over; nothing of them was sent.
    fn expire(&self, lot: &mut Vec<Box<Job>>) {
        let now = Instant::now();
        lot.retain_mut(|job| {
            if job.deadline <= now {
                let error = if job.refused { refused(&job.target) } else { self.late() };
                job.answer(Err(error.class(RetryClass::Transient)));
            }
            job.confirmer.is_some()
        });
    }

    fn unfit(&self, size: usize) -> Error {
        let text = format!(
            "headers take {size} bytes, more than a frame of {} can carry; put them in the payload",
            self.frame_max
        );
        error_of(ErrorKind::Invalid, "publish", text)
    }

    fn unroutable(&self, target: &Target) -> Error {
        let text = if target.exchange.as_str().is_empty() {
            // Somebody deleted it: the next message shall find it again.
            self.topology.forget();
            format!("queue {:?} does not exist", target.routing_key.as_str())
        } else {
            format!(
                "no group of topic {:?} takes type {:?}: declare its subscription first, or publish with allow_unrouted",
                target.exchange.as_str(),
                target.routing_key.as_str()
            )
        };
        error_of(ErrorKind::Unroutable, "publish", text)
    }

    /// No confirm will come, since the channel is gone.
    fn unanswered(&self, target: &Target, error: lapin::Error) -> Error {
        let by_a_message = error.is_amqp_soft_error();
        let named = format!("'{}'", exchange_name(target));
        let error = failed("publish", "waiting for the confirm", error);
        if !by_a_message {
            return error.class(RetryClass::Ambiguous);
        }
        if error.kind() == ErrorKind::Denied && error.to_string().contains(&named) {
            // The right is looked up before anything is stored, and is the same for all messages.
            return error;
        }
        // Somebody deleted the exchange: the next message shall find it again.
        self.topology.forget();
        if error.to_string().contains(&named) {
            // It is made again before the next publish. Before it was deleted, it may have taken
            // this message.
            let again = self.topology.settings.options.declare == Declare::Create;
            return if again { error.class(RetryClass::Ambiguous) } else { error };
        }
        let text = "another message closed the channel before the confirm came";
        ambiguous(ErrorKind::Unavailable, text).with_source(error)
    }

    /// Marks what a queue refused as not written, so that it is sent again until its time is over:
    /// the queue may be full, or not up yet, or somebody deleted it, and it is declared again. Not
    /// behind a later message of its key. Returns whether there is any.
    fn repeat_refused(&self, fates: &mut [Fate], lot: &mut [Box<Job>]) -> bool {
        let declares = self.topology.settings.options.declare == Declare::Create;
        let is_open = |fate: &Fate| match fate {
            Fate::Refused => true,
            Fate::Returned => declares,
            _ => false,
        };
        let (mut overtaken, mut repeats) = (HashSet::new(), false);
        if !fates.iter().any(is_open) {
            return false;
        }
        for (fate, job) in fates.iter_mut().zip(lot).rev() {
            let key = job.envelope.key.as_deref();
            if matches!(fate, Fate::Acked) {
                overtaken.extend(key);
            } else if is_open(fate)
                && job.target.exchange.as_str().is_empty()
                && key.is_none_or(|key| !overtaken.contains(key))
            {
                if matches!(fate, Fate::Returned) {
                    self.topology.forget();
                }
                (job.refused, repeats) = (true, true);
                *fate = Fate::Unwritten;
            }
        }
        repeats
    }

    fn late(&self) -> Error {
        if self.link.is_blocked() {
            let text = "the broker blocks publishers: it is short of memory or disk";
            ambiguous(ErrorKind::Blocked, text)
        } else {
            let text = "the broker did not confirm within the publish timeout";
            match self.link.outage() {
                Some(cause) => ambiguous(ErrorKind::Timeout, format!("{text}; {cause}")),
                None => ambiguous(ErrorKind::Timeout, text),
            }
        }
    }
}

/// As the server calls it, which has a name for the default exchange too.
fn exchange_name(target: &Target) -> &str {
    Some(target.exchange.as_str()).filter(|name| !name.is_empty()).unwrap_or("amq.default")
}

fn refused(target: &Target) -> Error {
    let text = "the broker refused the message; it may be short of resources";
    if target.exchange.as_str().is_empty() {
        error_of(ErrorKind::Blocked, "publish", text)
    } else {
        // Of several queues behind an exchange, some may have it.
        ambiguous(ErrorKind::Blocked, text)
    }
}

fn ambiguous(kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Error {
    error_of(kind, "publish", text).class(RetryClass::Ambiguous)
}

fn key(job: &Job) -> Key {
    let Target { exchange, routing_key, .. } = &job.target;
    (exchange.clone(), routing_key.clone(), property(&job.envelope.id))
}
