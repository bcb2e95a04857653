use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anybroker_core::{Destination, Envelope, Error, ErrorKind, Result, Subscription};
use tokio::time::Instant;

use crate::blocked::BlockedSends;
use crate::connection::{Connection, error};
use crate::group::{Group, Shape};
use crate::signals::Signals;

/// A queue with its one group, or a topic with any number of them.
pub(crate) struct StoredDestination {
    declared: Destination,
    groups: Mutex<Groups>,
}

/// All that is stored, under one lock: a send reaches all groups at once, or none.
#[derive(Default)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    pub(crate) blocked: BlockedSends,
}

impl StoredDestination {
    pub(crate) fn new(declared: Destination) -> Self {
        let mut groups = Groups::default();
        if !declared.is_topic() {
            let shape =
                Shape { ordered: declared.is_ordered(), partitions: declared.partition_count() };
            groups.groups.push(Group::new(declared.name(), shape));
        }
        Self { declared, groups: Mutex::new(groups) }
    }

    /// Locks it; make the [`Signals`] before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with one group.
    pub(crate) fn with<R>(
        &self,
        group: usize,
        act: impl FnOnce(&mut Group, &mut Signals) -> R,
    ) -> R {
        let mut signals = Signals::default();
        let mut groups = self.lock();
        act(groups.group(group), &mut signals)
    }

    /// # Errors
    /// `Mismatch` for a topic where a queue was declared, and the reverse.
    pub(crate) fn check_kind(&self, asked: &Destination) -> Result<()> {
        if self.declared.is_topic() == asked.is_topic() { Ok(()) } else { self.mismatch(asked) }
    }

    /// # Errors
    /// `Mismatch` for another shape than was declared.
    pub(crate) fn check_shape(&self, asked: &Destination) -> Result<()> {
        let shape = |destination: &Destination| {
            (destination.is_topic(), destination.is_ordered(), destination.partition_count())
        };
        if shape(&self.declared) == shape(asked) { Ok(()) } else { self.mismatch(asked) }
    }

    fn mismatch(&self, asked: &Destination) -> Result<()> {
        let name = format!("{:?}", self.declared.name());
        Err(Error::mismatch(&name, &self.declared.shape(), &asked.shape()))
    }

    /// Where the subscription's group stands, added to a topic where `connection` may do so.
    pub(crate) fn declare_group(
        &self,
        subscription: &Subscription,
        connection: &Connection,
    ) -> Result<usize> {
        let mut groups = self.lock();
        let name = subscription.group_name();
        let asked = Shape::from(subscription);
        let Some(index) = groups.groups.iter().position(|group| group.name() == name) else {
            if !connection.may_create() {
                return Err(self.no_group(name));
            }
            groups.groups.push(Group::new(name, asked));
            return Ok(groups.groups.len() - 1);
        };
        let declared = groups.groups[index].shape();
        if declared != asked {
            let what = format!("group {name:?} of {:?}", self.declared.name());
            return Err(Error::mismatch(&what, &declared.to_string(), &asked.to_string()));
        }
        Ok(index)
    }

    /// # Errors
    /// `NotFound`.
    pub(crate) fn find_group(&self, name: &str) -> Result<usize> {
        let index = self.lock().groups.iter().position(|group| group.name() == name);
        index.ok_or_else(|| self.no_group(name))
    }

    fn no_group(&self, name: &str) -> Error {
        error(
            ErrorKind::NotFound,
            format!("topic {:?} has no group {name:?}: declare it first", self.declared.name()),
        )
    }

    /// Ends what a connection has under way here: its consumers see that it is closed, what they
    /// were handed comes back, and its sends that still wait are refused.
    pub(crate) fn disconnect(&self, connection: &Arc<Connection>) {
        let mut signals = Signals::default();
        let mut groups = self.lock();
        for group in &mut groups.groups {
            group.reclaim(
                |in_flight, _| Arc::ptr_eq(&in_flight.connection, connection),
                &mut signals,
            );
            // Its consumers learn that they are closed.
            group.wake(&mut signals);
        }
        groups.blocked.disconnect(connection, &mut signals);
    }
}

impl Groups {
    pub(crate) fn group(&mut self, index: usize) -> &mut Group {
        &mut self.groups[index]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether as many messages wait in a group as may.
    pub(crate) fn is_full(&self, capacity: usize) -> bool {
        self.groups.iter().any(|group| group.backlog() >= capacity)
    }

    pub(crate) fn store(
        &mut self,
        envelope: Arc<Envelope>,
        since: Instant,
        due: Option<Instant>,
        signals: &mut Signals,
    ) {
        let Some((last, others)) = self.groups.split_last_mut() else { return };
        for group in others {
            group.store(envelope.clone(), since, due, signals);
        }
        last.store(envelope, since, due, signals);
    }

    /// Lets the blocked sends in for which there is room now, in their order.
    pub(crate) fn admit(&mut self, signals: &mut Signals) {
        while let Some(capacity) = self.blocked.next_capacity()
            && !self.is_full(capacity)
            && let Some(send) = self.blocked.pop()
        {
            self.store(send.envelope, send.since, send.due, signals);
            signals.answer(send.confirmer, Ok(()));
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.ordered { "ordered" } else { "unordered" };
        write!(f, "{order}, partitions: {}", self.partitions)
    }
}
