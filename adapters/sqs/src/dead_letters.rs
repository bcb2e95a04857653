use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::{
    DeadLetter, DeadLetterFilter, Envelope, Hop, Peek, Redrive, Result, Subscription, now,
};
use aws_sdk_sqs::types::Message;
use tokio::time::{Instant, sleep};

use crate::answers::hide;
use crate::error::{failed, no_group};
use crate::lane::ENTRIES;
use crate::message;
use crate::senders::{Senders, Target};
use crate::topology::Topology;

const OPERATION: &str = "dead letters";

/// How long what is looked at is hidden: as long as it takes to go through the queue.
const HIDDEN: Duration = Duration::from_mins(2);

/// A look goes no further than this.
const MOST_SEEN: usize = 10_000;

/// Nor past so many receives in a row that bring only what was seen.
const MOST_REPEATS: usize = 20;

/// Goes once through the dead-letter queue of a group.
///
/// SQS has no cursor: what was seen stays hidden until the end, or it would come again. The dead
/// letters of one key in order come ten at most before the first of them is deleted.
pub(crate) struct DeadLetters {
    topology: Arc<Topology>,
    subscription: Subscription,
    /// The dead-letter queue's URL.
    queue: Arc<str>,
    /// The URL of the group's own queue.
    source: Arc<str>,
    seen: HashSet<String>,
    /// Receipts of what stays.
    hidden: Vec<String>,
}

struct Letter {
    id: String,
    receipt: String,
    envelope: Envelope,
    hop: Hop,
    sent_at: u64,
    deadline: Instant,
}

impl DeadLetters {
    /// Looks for the dead letters of a group; `None` where it has no queue for them yet.
    ///
    /// # Errors
    /// `NotFound` where there is no such group.
    pub(crate) async fn find(
        topology: &Arc<Topology>,
        subscription: &Subscription,
        operation: &'static str,
    ) -> Result<Option<Self>> {
        let found = topology.look(subscription).await?;
        let source = found.queue.ok_or_else(|| no_group(operation, subscription))?;
        Ok(found.dead_letters.map(|queue| Self {
            topology: Arc::clone(topology),
            subscription: subscription.clone(),
            queue,
            source,
            seen: HashSet::new(),
            hidden: Vec::new(),
        }))
    }

    pub(crate) async fn peek(mut self, filter: &DeadLetterFilter, limit: usize) -> Result<Peek> {
        let (mut found, now) = (Vec::new(), now());
        let looked = loop {
            if found.len() >= limit || self.seen.len() >= MOST_SEEN {
                break Ok(());
            }
            let letters = match self.receive(HIDDEN).await {
                Ok(letters) => letters,
                Err(error) => break Err(error),
            };
            if letters.is_empty() {
                break Ok(());
            }
            for letter in letters {
                self.hidden.push(letter.receipt);
                if filter.matches(&letter.envelope, &letter.hop, now) {
                    found.push((letter.sent_at, letter.envelope, letter.hop));
                }
            }
        };
        self.show().await;
        looked?;
        // SQS hands out in no order.
        found.sort_by(|(sent, one, _), (also_sent, other, _)| {
            (sent, &one.id).cmp(&(also_sent, &other.id))
        });
        let entries = found.into_iter().take(limit);
        let entries = entries
            .map(|(_, envelope, hop)| DeadLetter { envelope: Arc::new(envelope), hop })
            .collect();
        Ok(Peek { entries, complete: false })
    }

    /// Sends back one after the other: stored with its confirmation, then deleted. A crash between
    /// leaves one that is sent twice.
    pub(crate) async fn redrive(mut self, redrive: &Redrive, senders: &Senders) -> Result<u64> {
        let (mut redriven, now) = (0, now());
        let pause = redrive.interval().unwrap_or_default();
        let publish_timeout = self.topology.settings.options.publish_timeout;
        let hide = HIDDEN + publish_timeout + pause * 10;
        // A message that is given up again meanwhile is not sent back twice.
        let mut sent = HashSet::new();
        let done = 'done: loop {
            let letters = match self.receive(hide).await {
                Ok(letters) if letters.is_empty() => break Ok(()),
                Ok(letters) => letters,
                Err(error) => break Err(error),
            };
            let mut letters = letters.into_iter();
            while let Some(letter) = letters.next() {
                let full = redriven >= redrive.at_most();
                if full
                    || !redrive.selected().matches(&letter.envelope, &letter.hop, now)
                    || !sent.insert((letter.envelope.source.clone(), letter.envelope.id.clone()))
                {
                    self.hidden.push(letter.receipt);
                    if full {
                        self.hidden.extend(letters.map(|letter| letter.receipt));
                        break 'done Ok(());
                    }
                    continue;
                }
                if redriven > 0 {
                    sleep(pause).await;
                }
                if letter.deadline <= Instant::now() + publish_timeout {
                    // Somebody else may have it by the time it is sent.
                    continue;
                }
                let target = Target::Found(self.subscription.clone(), Arc::clone(&self.source));
                let stored =
                    senders.send(&target, &letter.envelope, &Hop::redrive(), Duration::ZERO).await;
                let moved = match stored {
                    Ok(()) => self.delete(&letter.receipt).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = moved {
                    self.hidden.push(letter.receipt);
                    self.hidden.extend(letters.map(|letter| letter.receipt));
                    break 'done Err(error);
                }
                redriven += 1;
            }
        };
        self.show().await;
        done.map(|()| redriven)
    }

    /// Deletes what was there at the beginning, by the server's clock and this one.
    pub(crate) async fn purge(mut self) -> Result<u64> {
        let began = now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut purged = 0;
        let done = 'done: loop {
            let letters = match self.receive(HIDDEN).await {
                Ok(letters) if letters.is_empty() => break Ok(()),
                Ok(letters) => letters,
                Err(error) => break Err(error),
            };
            for letter in letters {
                if u128::from(letter.sent_at) > began {
                    self.hidden.push(letter.receipt);
                } else if let Err(error) = self.delete(&letter.receipt).await {
                    break 'done Err(error);
                } else {
                    purged += 1;
                }
            }
        };
        self.show().await;
        done.map(|()| purged)
    }

    /// The next ones; none at the end, which is where nothing comes at all.
    async fn receive(&mut self, hide: Duration) -> Result<Vec<Letter>> {
        for _ in 0..MOST_REPEATS {
            let (letters, count) = self.receive_once(hide).await?;
            if !letters.is_empty() || count == 0 {
                return Ok(letters);
            }
        }
        Ok(Vec::new())
    }

    /// What is new of a receive, and how many it has brought.
    async fn receive_once(&mut self, hide: Duration) -> Result<(Vec<Letter>, usize)> {
        let deadline = Instant::now() + hide;
        let received = self
            .topology
            .clients
            .polls
            .receive_message()
            .queue_url(&*self.queue)
            .max_number_of_messages(10)
            // A receive that does not wait asks some of the servers only.
            .wait_time_seconds(1)
            .visibility_timeout(i32::try_from(hide.as_secs()).unwrap_or(i32::MAX))
            .set_message_system_attribute_names(Some(message::READ.to_vec()))
            .message_attribute_names("All")
            .send()
            .await;
        let received =
            received.map_err(|error| self.topology.failed(OPERATION, &self.queue, error))?;
        let mut letters = Vec::new();
        for message in received.messages() {
            let letter = self.letter(message, deadline);
            // What comes again has been hidden for too long; it is looked at once.
            if self.seen.insert(letter.id.clone()) {
                letters.push(letter);
            } else {
                self.hidden.push(letter.receipt);
            }
        }
        Ok((letters, received.messages().len()))
    }

    fn letter(&self, message: &Message, deadline: Instant) -> Letter {
        let default_type = self.subscription.destination().name();
        let (envelope, hop) = message::read(message, default_type, &self.topology.clients.clock);
        Letter {
            id: message.message_id().unwrap_or_default().to_owned(),
            receipt: message.receipt_handle().unwrap_or_default().to_owned(),
            envelope,
            hop: *hop.unwrap_or_default(),
            sent_at: message::sent_at(message),
            deadline,
        }
    }

    async fn delete(&self, receipt: &str) -> Result<()> {
        let delete = self.topology.clients.calls.delete_message().queue_url(&*self.queue);
        let deleted = delete.receipt_handle(receipt).send().await;
        deleted.map(drop).map_err(|error| failed(OPERATION, &self.queue, error))
    }

    /// Makes visible again what stays. What this does not reach shows itself later.
    async fn show(&mut self) {
        for receipts in self.hidden.chunks(ENTRIES) {
            let receipts = receipts.iter().map(|receipt| (&**receipt, Duration::ZERO));
            for shown in hide(&self.topology, &self.queue, OPERATION, receipts).await {
                if let Err(error) = shown {
                    tracing::debug!(%error, "a dead letter stays hidden for a while");
                }
            }
        }
        self.hidden.clear();
    }
}
