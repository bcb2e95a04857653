use std::collections::VecDeque;
use std::sync::Arc;

use anybroker_core::{Confirmation, Confirmer, Envelope, Error, ErrorKind, Result};
use tokio::time::{Instant, timeout_at};

use crate::connection::{Connection, error};
use crate::destination::StoredDestination;
use crate::signals::Signals;

/// The sends that wait for room, in their order: none overtakes another, so that the messages of a
/// producer stay in order.
///
/// Each ends at its deadline when its confirmation is polled, else when the next send comes.
#[derive(Default)]
pub(crate) struct BlockedSends {
    /// With a number each, in rising order.
    sends: VecDeque<(u64, BlockedSend)>,
    next: u64,
}

pub(crate) struct BlockedSend {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) since: Instant,
    pub(crate) due: Option<Instant>,
    pub(crate) deadline: Instant,
    pub(crate) connection: Arc<Connection>,
    pub(crate) confirmer: Confirmer,
}

impl BlockedSends {
    pub(crate) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    pub(crate) fn push(&mut self, send: BlockedSend) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sends.push_back((number, send));
        number
    }

    /// How many messages may wait in a group at most when the next send is let in.
    pub(crate) fn next_capacity(&self) -> Option<usize> {
        self.sends.front().map(|(_, send)| send.connection.config.capacity)
    }

    pub(crate) fn pop(&mut self) -> Option<BlockedSend> {
        self.sends.pop_front().map(|(_, send)| send)
    }

    /// Refuses the first ones, as far as their deadlines have passed.
    pub(crate) fn expire(&mut self, now: Instant, signals: &mut Signals) {
        while let Some((_, first)) = self.sends.front()
            && first.deadline <= now
            && let Some(send) = self.pop()
        {
            signals.answer(send.confirmer, Err(full()));
        }
    }

    fn refuse(&mut self, number: u64, signals: &mut Signals) {
        let index = self.sends.binary_search_by_key(&number, |(number, _)| *number);
        if let Some((_, send)) = index.ok().and_then(|index| self.sends.remove(index)) {
            signals.answer(send.confirmer, Err(full()));
        }
    }

    pub(crate) fn disconnect(&mut self, connection: &Arc<Connection>, signals: &mut Signals) {
        for (number, send) in std::mem::take(&mut self.sends) {
            if Arc::ptr_eq(&send.connection, connection) {
                let closed =
                    error(ErrorKind::Closed, "the broker was closed before there was room");
                signals.answer(send.confirmer, Err(closed.operation("publish")));
            } else {
                self.sends.push_back((number, send));
            }
        }
    }
}

/// Waits for the answer until the deadline.
pub(crate) async fn wait(
    destination: Arc<StoredDestination>,
    number: u64,
    deadline: Instant,
    mut answer: Confirmation,
) -> Result<()> {
    if let Ok(result) = timeout_at(deadline, &mut answer).await {
        return result;
    }
    {
        let mut signals = Signals::default();
        destination.lock().blocked.refuse(number, &mut signals);
    }
    // Refused just now, or let in just before.
    answer.await
}

fn full() -> Error {
    error(
        ErrorKind::Blocked,
        "a group was full until the publish timeout: add consumers, or raise capacity or publish-timeout",
    )
    .operation("publish")
}
