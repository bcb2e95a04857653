use std::time::Duration;

use anybroker_core::{Error, ErrorKind, Result, RetryClass};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, ChangeMessageVisibilityBatchResultEntry,
};

use crate::error::{error_of, failed, of_code};
use crate::lane::ENTRIES;
use crate::topology::Topology;

/// An answer for each entry of a batch. What the broker does not mention stays ambiguous: to take
/// the whole batch's success for each entry's is the classic silent loss.
pub(crate) struct Answers {
    operation: &'static str,
    pub(crate) all: Vec<Result<()>>,
}

/// What SQS and SNS say of an entry that failed: id, code, text, and whether it is the sender's
/// fault.
pub(crate) type Failed<'a> = (&'a str, &'a str, Option<&'a str>, bool);

impl Answers {
    pub(crate) fn new(operation: &'static str, count: usize) -> Self {
        let unmentioned = || {
            let text = "the broker's answer does not mention the message";
            Err(error_of(ErrorKind::Broker, operation, text).class(RetryClass::Ambiguous))
        };
        Self { operation, all: (0..count).map(|_| unmentioned()).collect() }
    }

    /// Takes in what the broker says; `what` was called.
    pub(crate) fn fill<'a>(
        &mut self,
        what: &str,
        successful: impl Iterator<Item = &'a str>,
        failed: impl Iterator<Item = Failed<'a>>,
    ) {
        for id in successful {
            self.set(id, Ok(()));
        }
        for (id, code, text, senders) in failed {
            self.set(id, Err(of_code(self.operation, what, code, text, senders)));
        }
    }

    fn set(&mut self, id: &str, answer: Result<()>) {
        if let Some(place) = id.parse::<usize>().ok().and_then(|index| self.all.get_mut(index)) {
            *place = answer;
        }
    }

    /// Answers all of them with one error.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.all.iter_mut().for_each(|answer| *answer = Err(error.again()));
    }
}

/// Hides at most ten messages for so long from now, in one call.
pub(crate) async fn hide(
    topology: &Topology,
    queue: &str,
    operation: &'static str,
    batch: impl Iterator<Item = (&str, Duration)>,
) -> Vec<Result<()>> {
    let mut entries = Vec::with_capacity(ENTRIES);
    for (receipt, time) in batch {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
            .id(entries.len().to_string())
            .receipt_handle(receipt)
            // Rounded up: nothing comes early.
            .visibility_timeout(i32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(i32::MAX));
        entries.extend(entry.build());
    }
    let mut answers = Answers::new(operation, entries.len());
    let change = topology.clients.calls.change_message_visibility_batch();
    match change.queue_url(queue).set_entries(Some(entries)).send().await {
        Ok(sent) => {
            let refused = sent.failed().iter();
            answers.fill(
                queue,
                sent.successful().iter().map(ChangeMessageVisibilityBatchResultEntry::id),
                refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
            );
        }
        Err(error) => answers.fail(&failed(operation, queue, error)),
    }
    answers.all
}
