use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Backoff, Error, ErrorKind, Jitter, Result, RetryClass};
use aws_sdk_sns::types::PublishBatchRequestEntry;
use aws_sdk_sqs::types::{SendMessageBatchRequestEntry, SendMessageBatchResultEntry};
use tokio::time::{Instant, sleep, sleep_until};

use super::{PUBLISH, Target, Unsent};
use crate::answers::{Answers, may_be_of_an_entry};
use crate::error::{closed, error_of};
use crate::topology::Topology;

/// Messages that are stored in one call, each of which is answered by itself: with what the broker
/// says of it, and by its own deadline. They were gathered while others were stored, so that one
/// may have waited for long and another one have just come.
pub(super) struct Batch {
    unsent: Vec<Unsent>,
    /// What kept them from being stored so far.
    last: Option<Error>,
    /// Whether a call is under way.
    calling: bool,
}

impl Batch {
    pub(super) fn of(unsent: Vec<Unsent>) -> Self {
        Self { unsent, last: None, calling: false }
    }

    /// Stores them, and repeats what has stored nothing for certain, until the deadline of each. To
    /// repeat any other call could store a message twice, but on FIFO, where the de-duplication id
    /// prevents that.
    pub(super) async fn store(mut self, topology: Arc<Topology>, target: Arc<Target>) {
        self.expire("its turn did not come within the publish timeout");
        let (mut attempt, mut redeclared) = (0, false);
        // A topic that was deleted has lost its groups: to create it anew would store into nothing.
        let declares = matches!(*target, Target::Queue(_) | Target::DeadLetters(_));
        while !self.unsent.is_empty() {
            attempt += 1;
            let pause = pause(attempt, &self.unsent);
            let error = match self.attempt(&topology, &target).await {
                None => return,
                Some(Ok(answers)) => {
                    self.answer_each(answers, pause);
                    if !self.unsent.is_empty() {
                        sleep(pause).await;
                    }
                    continue;
                }
                Some(Err(error)) => error,
            };
            if may_be_of_an_entry(&error) && self.unsent.len() > 1 {
                // The fault of one of them is not the others'.
                for alone in self.unsent {
                    let store = Self::of(vec![alone]).store(topology.clone(), target.clone());
                    Box::pin(store).await;
                }
                return;
            }
            let repeats = match error.retry_class() {
                RetryClass::Transient => true,
                RetryClass::Ambiguous => {
                    self.unsent.iter_mut().for_each(|unsent| unsent.in_doubt = true);
                    self.unsent.iter().all(|unsent| unsent.order.is_some())
                }
                // It was deleted: the next round declares it again.
                RetryClass::Permanent => {
                    let is_gone = declares && error.kind() == ErrorKind::NotFound;
                    is_gone && !std::mem::replace(&mut redeclared, true)
                }
            };
            let soon = Instant::now() + pause;
            self.answer(|unsent| (!repeats || soon >= unsent.deadline).then(|| error.again()));
            if self.unsent.is_empty() {
                return;
            }
            tracing::debug!(%error, "storing again");
            self.last = Some(error);
            sleep(pause).await;
        }
    }

    /// One attempt; `None` when the time of all was over first.
    async fn attempt(
        &mut self,
        topology: &Arc<Topology>,
        target: &Target,
    ) -> Option<Result<Vec<Result<()>>>> {
        let text = "the destination was not declared within the publish timeout";
        let address = match self.meanwhile(target.address(topology), text).await? {
            Ok(address) => address,
            // Nothing was sent yet, whatever became of the declaration.
            Err(error) if error.retry_class() == RetryClass::Ambiguous => {
                return Some(Err(error.class(RetryClass::Transient)));
            }
            Err(error) => return Some(Err(error)),
        };
        let call = call(topology, target, &address, &self.unsent);
        self.calling = true;
        let text = "the broker did not answer within the publish timeout";
        let answered = self.meanwhile(call, text).await;
        self.calling = false;
        if let Some(Err(error)) = &answered
            && error.kind() == ErrorKind::NotFound
        {
            topology.forget(&address);
        }
        answered
    }

    /// Waits for something, and answers those whose time is over meanwhile; `None` when that are
    /// all. The others keep their places.
    async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
        text: &'static str,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            let open = self.unsent.iter().filter(|unsent| unsent.confirmer.is_some());
            let next = open.map(|unsent| unsent.deadline).min()?;
            tokio::select! {
                done = &mut work => return Some(done),
                () = sleep_until(next) => self.refuse_late(text),
            }
        }
    }

    /// Takes out those whose time is over.
    fn expire(&mut self, text: &'static str) {
        self.refuse_late(text);
        self.unsent.retain(|unsent| unsent.confirmer.is_some());
    }

    fn refuse_late(&mut self, text: &'static str) {
        let now = Instant::now();
        for unsent in self.unsent.iter_mut().filter(|unsent| unsent.deadline <= now) {
            let Some(confirmer) = unsent.confirmer.take() else { continue };
            let error = match &self.last {
                Some(error) if !self.calling => error.again(),
                _ => error_of(ErrorKind::Timeout, PUBLISH, text).class(RetryClass::Transient),
            };
            let in_doubt = self.calling || unsent.in_doubt;
            let error = if in_doubt { error.class(RetryClass::Ambiguous) } else { error };
            confirmer.confirm(Err(error));
        }
    }

    /// Takes in the broker's answers; what it refused for now stays.
    fn answer_each(&mut self, answers: Vec<Result<()>>, pause: Duration) {
        let soon = Instant::now() + pause;
        let mut refused = Vec::new();
        for (mut unsent, answer) in std::mem::take(&mut self.unsent).into_iter().zip(answers) {
            let repeats = answer.as_ref().is_err_and(|error| {
                // In order a later one may be stored already.
                let alone = unsent.order.is_none() && soon < unsent.deadline;
                alone && error.retry_class() == RetryClass::Transient
            });
            match unsent.confirmer.take() {
                Some(confirmer) if repeats => {
                    unsent.confirmer = Some(confirmer);
                    refused.push(unsent);
                }
                Some(confirmer) => confirmer.confirm(answer),
                None => {}
            }
        }
        self.unsent = refused;
    }

    /// Takes out those for which there is an error to answer, and those that were answered.
    fn answer(&mut self, error: impl Fn(&Unsent) -> Option<Error>) {
        self.unsent.retain_mut(|unsent| {
            let Some(error) = error(unsent) else { return unsent.confirmer.is_some() };
            let error = if unsent.in_doubt { error.class(RetryClass::Ambiguous) } else { error };
            if let Some(confirmer) = unsent.confirmer.take() {
                confirmer.confirm(Err(error));
            }
            false
        });
    }
}

/// How long to wait after so many attempts; calls that failed together are not repeated together.
fn pause(attempt: u32, batch: &[Unsent]) -> Duration {
    let backoff = Backoff::exponential(Duration::from_millis(50)).cap(Duration::from_secs(2));
    let seed = batch.first().map_or("", |unsent| &unsent.body);
    backoff.jitter(Jitter::Equal).delay(attempt, seed)
}

/// One call; the answers are in the order of the batch.
fn call(
    topology: &Arc<Topology>,
    target: &Target,
    address: &Arc<str>,
    batch: &[Unsent],
) -> impl Future<Output = Result<Vec<Result<()>>>> + use<> {
    let request = Request::new(target, batch);
    let (topology, address, count) = (Arc::clone(topology), Arc::clone(address), batch.len());
    async move {
        let mut answers = Answers::new(PUBLISH, count);
        match request? {
            Request::Topic(entries) => {
                let sns = topology.clients.sns.as_ref().ok_or_else(|| closed(PUBLISH))?;
                let publish = sns.sends.publish_batch().topic_arn(&*address);
                let sent = publish.set_publish_batch_request_entries(Some(entries)).send().await;
                let sent = sent.map_err(|error| topology.failed(PUBLISH, &address, error))?;
                let refused = sent.failed().iter();
                answers.fill(
                    &address,
                    sent.successful().iter().filter_map(|entry| entry.id()),
                    refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
                );
            }
            Request::Queue(entries) => {
                let call = topology.clients.sends.send_message_batch().queue_url(&*address);
                let sent = call.set_entries(Some(entries)).send().await;
                let sent = sent.map_err(|error| topology.failed(PUBLISH, &address, error))?;
                let refused = sent.failed().iter();
                answers.fill(
                    &address,
                    sent.successful().iter().map(SendMessageBatchResultEntry::id),
                    refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
                );
            }
        }
        Ok(answers.all)
    }
}

/// The entries of a call, with their places as ids.
enum Request {
    Topic(Vec<PublishBatchRequestEntry>),
    Queue(Vec<SendMessageBatchRequestEntry>),
}

impl Request {
    fn new(target: &Target, batch: &[Unsent]) -> Result<Self> {
        let numbered = batch.iter().enumerate();
        let group = |unsent: &Unsent| unsent.order.as_ref().map(|order| order.group.clone());
        let deduplication =
            |unsent: &Unsent| unsent.order.as_ref().map(|order| order.deduplication_id.clone());
        let request = if let Target::Topic(_) = target {
            let entries = numbered.map(|(id, unsent)| {
                PublishBatchRequestEntry::builder()
                    .id(id.to_string())
                    .message(unsent.body.clone())
                    .set_message_group_id(group(unsent))
                    .set_message_deduplication_id(deduplication(unsent))
                    .build()
            });
            entries.collect::<Result<_, _>>().map(Self::Topic)
        } else {
            let entries = numbered.map(|(id, unsent)| {
                SendMessageBatchRequestEntry::builder()
                    .id(id.to_string())
                    .message_body(unsent.body.clone())
                    .set_delay_seconds((unsent.delay > 0).then_some(unsent.delay))
                    .set_message_group_id(group(unsent))
                    .set_message_deduplication_id(deduplication(unsent))
                    .build()
            });
            entries.collect::<Result<_, _>>().map(Self::Queue)
        };
        request.map_err(|error| {
            error_of(ErrorKind::Invalid, PUBLISH, "the message has no form").with_source(error)
        })
    }
}
