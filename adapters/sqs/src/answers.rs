use std::time::Duration;

use anybroker_core::{Error, ErrorKind, Result, RetryClass};
use aws_sdk_sqs::types::builders::ChangeMessageVisibilityBatchRequestEntryBuilder;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, ChangeMessageVisibilityBatchResultEntry,
};

use crate::error::{error_of, of_code};
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

/// Whether a call that was refused as a whole may have been so for one of its entries, whose fault
/// is not the others': they are called for one by one then.
pub(crate) fn may_be_of_an_entry(error: &Error) -> bool {
    let of_all = matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Config | ErrorKind::Unsupported
    );
    error.retry_class() == RetryClass::Permanent && !of_all && error.kind() != ErrorKind::Closed
}

/// Hides at most ten messages for so long from now, in one call.
pub(crate) async fn hide(
    topology: &Topology,
    queue: &str,
    operation: &'static str,
    batch: impl Iterator<Item = (&str, Duration)>,
) -> Vec<Result<()>> {
    let entry = |(receipt, time): (&str, Duration)| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().receipt_handle(receipt);
        // Rounded up: nothing comes early.
        let seconds = i32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        entry.visibility_timeout(seconds)
    };
    let entries: Vec<_> = batch.map(entry).collect();
    match hide_once(topology, queue, operation, &entries).await {
        Err(error) if may_be_of_an_entry(&error) && entries.len() > 1 => {
            let mut all = Vec::with_capacity(entries.len());
            for alone in entries.chunks(1) {
                let hidden = hide_once(topology, queue, operation, alone).await;
                all.extend(hidden.unwrap_or_else(|error| vec![Err(error)]));
            }
            all
        }
        Err(error) => entries.iter().map(|_| Err(error.again())).collect(),
        Ok(answers) => answers,
    }
}

async fn hide_once(
    topology: &Topology,
    queue: &str,
    operation: &'static str,
    entries: &[ChangeMessageVisibilityBatchRequestEntryBuilder],
) -> Result<Vec<Result<()>>> {
    let mut answers = Answers::new(operation, entries.len());
    let numbered = entries.iter().enumerate();
    let numbered = numbered.map(|(id, entry)| entry.clone().id(id.to_string()).build());
    let numbered: Vec<_> = numbered.filter_map(Result::ok).collect();
    let change = topology.clients.calls.change_message_visibility_batch();
    let sent = change.queue_url(queue).set_entries(Some(numbered)).send().await;
    let sent = sent.map_err(|error| topology.failed(operation, queue, error))?;
    let refused = sent.failed().iter();
    answers.fill(
        queue,
        sent.successful().iter().map(ChangeMessageVisibilityBatchResultEntry::id),
        refused.map(|of| (of.id(), of.code(), of.message(), of.sender_fault())),
    );
    Ok(answers.all)
}
