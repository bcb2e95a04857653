use std::fmt;
use std::sync::Arc;

use anybroker_core::{Capabilities, Confirmation, ErrorKind, Outgoing, Producer, Result};
use tokio::time::Instant;

use crate::blocked::{self, BlockedSend};
use crate::connection::{Connection, error};
use crate::entry::due;
use crate::signals::Signals;

/// Publishes at once, or waits its turn where a group is full.
pub(crate) struct MemoryProducer {
    pub(crate) connection: Arc<Connection>,
    pub(crate) capabilities: Capabilities,
}

impl Producer for MemoryProducer {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        self.publish(outgoing).unwrap_or_else(|error| {
            Confirmation::ready(Err(error.broker("memory").operation("publish")))
        })
    }
}

impl MemoryProducer {
    fn publish(&self, outgoing: Outgoing) -> Result<Confirmation> {
        let (connection, config) = (&self.connection, &self.connection.config);
        outgoing.check(&self.capabilities)?;
        let destination = connection.declare(&outgoing.destination)?;
        let since = Instant::now();
        let due = due(since, outgoing.delay.unwrap_or_default());
        let envelope = Arc::new(outgoing.envelope);

        let mut signals = Signals::default();
        let mut groups = destination.lock();
        // Once more under the lock: what is stored now, a close would not see.
        connection.check_open()?;
        if groups.is_empty() {
            if outgoing.allow_unrouted {
                return Ok(Confirmation::ready(Ok(())));
            }
            return Err(error(
                ErrorKind::Unroutable,
                format!(
                    "topic {:?} has no group: declare a subscription first, or allow unrouted messages",
                    outgoing.destination.name()
                ),
            ));
        }
        groups.blocked.expire(since, &mut signals);
        if groups.blocked.is_empty() && !groups.is_full(config.capacity) {
            groups.store(envelope, since, due, &mut signals);
            return Ok(Confirmation::ready(Ok(())));
        }
        let (confirmer, answer) = Confirmation::channel();
        let deadline = self::due(since, config.publish_timeout).unwrap_or(since);
        let connection = connection.clone();
        let number = groups.blocked.push(BlockedSend {
            envelope,
            since,
            due,
            deadline,
            connection,
            confirmer,
        });
        drop(groups);
        Ok(Confirmation::run(blocked::wait(destination, number, deadline, answer)))
    }
}

impl fmt::Debug for MemoryProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryProducer").finish_non_exhaustive()
    }
}
