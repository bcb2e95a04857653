use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anybroker_core::{
    Confirmation, Confirmer, Envelope, Error, ErrorKind, Hop, Result, RetryClass,
};
use bytes::Bytes;
use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, PublisherConfirm};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{closed, error_of, failed};
use crate::group::stable_hash;
use crate::link::Link;
use crate::message::{cut, properties};
use crate::topology::{Needs, Topology};

/// Lanes for each connection. Each has one channel and one lot on its way: as many messages in
/// flight on one channel are slower, since the client searches all of them at each confirm.
const LANES: usize = 4;

/// The most messages of a lot.
const LOT: usize = 256;

/// What may wait to be sent, in KiB; each message counts one beside its payload.
const ROOM: usize = 512 * 1024;

/// Sends messages, each over the lane of its key, and answers what became of each.
pub(crate) struct Publishers {
    lanes: Vec<mpsc::UnboundedSender<Job>>,
    next: AtomicUsize,
    room: Arc<Semaphore>,
    topology: Arc<Topology>,
}

/// Where a message goes.
pub(crate) struct Target {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) mandatory: bool,
    pub(crate) needs: Needs,
}

struct Job {
    target: Target,
    /// The message's id, as a property: what a returned message is known by.
    id: ShortString,
    properties: BasicProperties,
    headers: usize,
    payload: Bytes,
    deadline: Instant,
    confirmer: Confirmer,
    _room: OwnedSemaphorePermit,
}

impl Publishers {
    /// Starts the lanes; they end, with all sent, when `closing` changes.
    pub(crate) fn start(
        topology: &Arc<Topology>,
        links: &[Link],
        closing: &watch::Receiver<bool>,
    ) -> Self {
        let lanes = links.iter().cycle().take(links.len() * LANES).map(|link| {
            let (sender, jobs) = mpsc::unbounded_channel();
            let lane = Lane {
                link: link.clone(),
                topology: Arc::clone(topology),
                channel: None,
                frame_max: 0,
            };
            tokio::spawn(lane.run(jobs, closing.clone()));
            sender
        });
        Self {
            lanes: lanes.collect(),
            next: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(ROOM)),
            topology: Arc::clone(topology),
        }
    }

    /// Sends; calls with one key are stored in their order.
    pub(crate) fn send(&self, target: Target, envelope: &Envelope, hop: &Hop) -> Confirmation {
        let cost = u32::try_from(1 + envelope.payload.len() / 1024).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(cost) else {
            let text = "too many messages wait to be sent; await the confirmations of some first";
            return Confirmation::ready(Err(error_of(ErrorKind::Blocked, "publish", text)));
        };
        let (properties, headers) = properties(envelope, hop);
        let (confirmer, confirmation) = Confirmation::channel();
        let job = Job {
            target,
            id: cut(&envelope.id),
            properties,
            headers,
            payload: envelope.payload.clone(),
            deadline: Instant::now() + self.topology.settings.publish_timeout,
            confirmer,
            _room: room,
        };
        let lane = match &envelope.key {
            Some(key) => usize::try_from(stable_hash(key) >> 33).unwrap_or_default(),
            None => self.next.fetch_add(1, Ordering::Relaxed),
        };
        match self.lanes[lane % self.lanes.len()].send(job) {
            Ok(()) => confirmation,
            Err(_) => Confirmation::ready(Err(closed("publish"))),
        }
    }
}

/// Writes one channel: two tasks on one would swap its delivery tags.
struct Lane {
    link: Link,
    topology: Arc<Topology>,
    channel: Option<Channel>,
    frame_max: usize,
}

type Written = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// What became of one message of a lot.
enum Fate {
    Acked,
    Refused,
    /// The broker never had it whole.
    Unwritten,
    Unanswered(lapin::Error),
    Late,
}

impl Lane {
    async fn run(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut closing: watch::Receiver<bool>,
    ) {
        let mut lot = Vec::with_capacity(LOT);
        let mut open = true;
        loop {
            tokio::select! {
                _ = closing.changed(), if open => {
                    open = false;
                    jobs.close();
                }
                count = jobs.recv_many(&mut lot, LOT) => {
                    if count == 0 {
                        return;
                    }
                    while !lot.is_empty() {
                        self.publish(&mut lot).await;
                    }
                }
            }
        }
    }

    /// Sends the lot; what is left in it afterwards was not sent, and has time left.
    async fn publish(&mut self, lot: &mut Vec<Job>) {
        // The one that waited longest has the earliest deadline.
        let deadline = lot[0].deadline;
        let channel = match timeout_at(deadline, self.channel()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => {
                lot.drain(..).for_each(|job| job.confirmer.confirm(Err(closed("publish"))));
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no channel to publish on");
                sleep(std::time::Duration::from_millis(50)).await;
                return self.expire(lot);
            }
            Err(_) => return self.expire(lot),
        };
        if !self.declare(lot).await {
            return self.expire(lot);
        }
        let written: Vec<_> = lot.drain(..).map(|mut job| (write(&channel, &mut job), job)).collect();
        let mut complete = true;
        let mut returned = HashSet::new();
        let mut fates = Vec::with_capacity(written.len());
        for (written, job) in written {
            let fate = self.fate(written, job.deadline, &mut returned).await;
            complete &= matches!(fate, Fate::Acked | Fate::Refused);
            fates.push((fate, job));
        }
        if !complete {
            // A return that comes late would be taken for one of the next lot.
            self.channel = None;
        }
        for (fate, job) in fates {
            let answer = match fate {
                Fate::Unwritten => {
                    lot.push(job);
                    continue;
                }
                _ if returned.contains(&job.key()) => Err(self.unroutable(&job.target)),
                // A return comes before its confirm, but may still wait behind another return.
                Fate::Acked if complete || returned.is_empty() => Ok(()),
                Fate::Acked => {
                    let text = "the connection ended before it was known whether any group has the message";
                    let error = error_of(ErrorKind::Unavailable, "publish", text);
                    Err(error.class(RetryClass::Ambiguous))
                }
                Fate::Refused => Err(refused(&job.target)),
                Fate::Unanswered(error) => Err(self.unanswered(&job.target, error)),
                Fate::Late => Err(self.late()),
            };
            job.confirmer.confirm(answer);
        }
        self.expire(lot);
    }

    async fn fate(
        &self,
        written: Written,
        deadline: Instant,
        returned: &mut HashSet<Key>,
    ) -> Fate {
        let confirm = match timeout_at(deadline, written).await {
            Ok(Ok(confirm)) => confirm,
            Ok(Err(_)) => return Fate::Unwritten,
            Err(_) => return Fate::Late,
        };
        match timeout_at(deadline, confirm).await {
            Ok(Ok(confirmation)) => {
                let acked = confirmation.is_ack();
                if let Some(message) = confirmation.take_message() {
                    let id = message.delivery.properties.message_id().clone();
                    returned.insert((
                        message.delivery.exchange,
                        message.delivery.routing_key,
                        id.unwrap_or_else(|| "".into()),
                    ));
                }
                if acked { Fate::Acked } else { Fate::Refused }
            }
            Ok(Err(error)) => Fate::Unanswered(error),
            Err(_) => Fate::Late,
        }
    }

    /// The channel, or a new one.
    async fn channel(&mut self) -> Result<Channel> {
        let connection = self.link.writable("publish").await?;
        match &self.channel {
            Some(channel) if channel.status().connected() => return Ok(channel.clone()),
            _ => self.channel = None,
        }
        let lost = |error| failed("publish", "opening a channel", error);
        let channel = connection.create_channel().await.map_err(lost)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(lost)?;
        self.frame_max = usize::try_from(connection.configuration().frame_max()).unwrap_or(usize::MAX);
        Ok(self.channel.insert(channel).clone())
    }

    /// Declares what the lot needs and takes out what cannot be sent; answers whether the rest
    /// can.
    async fn declare(&self, lot: &mut Vec<Job>) -> bool {
        let mut index = 0;
        while let Some(job) = lot.get(index) {
            // Everything that is no header takes far less than this.
            let fits = job.headers + 2048 <= self.frame_max;
            let ready = match &job.target.needs {
                _ if !fits => Err(error_of(
                    ErrorKind::Invalid,
                    "publish",
                    format!("headers take {} bytes; the connection takes {}", job.headers, self.frame_max),
                )),
                needs if self.topology.is_declared(needs) => Ok(()),
                needs => match timeout_at(job.deadline, self.topology.ensure(needs)).await {
                    Ok(ready) => ready,
                    Err(_) => return false,
                },
            };
            match ready {
                Ok(()) => index += 1,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    sleep(std::time::Duration::from_millis(50)).await;
                    return false;
                }
                Err(error) => lot.remove(index).confirmer.confirm(Err(error)),
            }
        }
        true
    }

    /// Answers those whose time is over.
    fn expire(&self, lot: &mut Vec<Job>) {
        let now = Instant::now();
        for job in lot.extract_if(.., |job| job.deadline <= now) {
            // Nothing of it was sent.
            job.confirmer.confirm(Err(self.late().class(RetryClass::Transient)));
        }
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
        if !error.is_amqp_soft_error() {
            return failed("publish", "waiting for the confirm", error).class(RetryClass::Ambiguous);
        }
        self.topology.forget();
        let named = format!("'{}'", target.exchange);
        let error = failed("publish", "waiting for the confirm", error);
        if error.to_string().contains(&named) {
            return error;
        }
        let text = "another message closed the channel before the confirm came";
        error_of(ErrorKind::Unavailable, "publish", text)
            .class(RetryClass::Ambiguous)
            .with_source(error)
    }

    fn late(&self) -> Error {
        let (kind, text) = if self.link.is_blocked() {
            (ErrorKind::Blocked, "the broker blocks publishers: it is short of memory or disk")
        } else {
            (ErrorKind::Timeout, "the broker did not confirm within the publish timeout")
        };
        error_of(kind, "publish", text).class(RetryClass::Ambiguous)
    }
}

fn refused(target: &Target) -> Error {
    let error = error_of(ErrorKind::Blocked, "publish", "the broker refused the message; it may be out of resources");
    // Of several queues behind an exchange, some may have it.
    let class = match target.exchange.as_str() {
        "" => RetryClass::Transient,
        _ => RetryClass::Ambiguous,
    };
    error.class(class)
}

/// Exchange, routing key and id: what tells a returned message from the others of its lot.
type Key = (ShortString, ShortString, ShortString);

impl Job {
    fn key(&self) -> Key {
        (self.target.exchange.clone(), self.target.routing_key.clone(), self.id.clone())
    }
}

/// Hands the message to the client, whose queue keeps the order of these calls.
fn write(channel: &Channel, job: &mut Job) -> Written {
    let channel = channel.clone();
    let (exchange, routing_key) = (job.target.exchange.clone(), job.target.routing_key.clone());
    let options = BasicPublishOptions { mandatory: job.target.mandatory, immediate: false };
    let properties = std::mem::take(&mut job.properties);
    let payload = job.payload.clone();
    let mut written: Written = Box::pin(async move {
        channel.basic_publish(exchange, routing_key, options, &payload, properties).await
    });
    match (&mut written).now_or_never() {
        Some(result) => Box::pin(std::future::ready(result)),
        None => written,
    }
}
