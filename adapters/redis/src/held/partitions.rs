//! The partitions of an ordered group: who owns one holds all that was read from it.

use tokio::time::Instant;

use super::{Entry, Held, Holding, State, Table};

/// What is known of a partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    /// With which it is owned. What is asked with a former one is refused.
    token: String,
    /// Until when it is owned; `None` where it is not.
    pub(super) until: Option<Instant>,
    /// Hands out no more until all that was handed out is back.
    pub(super) shut: bool,
    /// Is to be given up, and hands out nothing either.
    pub(super) leaving: bool,
}

/// Whether an ordered partition hands out.
pub(crate) enum Reopening {
    Open,
    /// From its beginning.
    Again,
    /// Not yet; these are to be given back.
    Not(Vec<Holding>),
}

impl Held {
    pub(crate) fn ordered(partitions: usize) -> Self {
        let held = Self::default();
        held.lock().partitions = Some(vec![Partition::default(); partitions]);
        held
    }

    /// What calls to the server are fenced with; empty in a group without order.
    pub(crate) fn token(&self, partition: usize) -> String {
        match &self.lock().partitions {
            None => String::new(),
            // Nobody has this one.
            Some(all) if all[partition].until.is_none() => "none".to_owned(),
            Some(all) => all[partition].token.clone(),
        }
    }

    pub(crate) fn is_owned(&self, partition: usize) -> bool {
        self.owned(partition).is_some()
    }

    /// Whether it is owned still, with the token of a call that was answered.
    pub(crate) fn is_owned_with(&self, partition: usize, token: &str) -> bool {
        self.owned(partition).is_some_and(|owned| owned == token)
    }

    fn owned(&self, partition: usize) -> Option<String> {
        let table = self.lock();
        let partition = &table.partitions.as_ref()?[partition];
        partition.until.is_some().then(|| partition.token.clone())
    }

    pub(crate) fn own(&self, partition: usize, token: String, until: Instant) {
        if let Some(partition) = self.lock().partition(partition) {
            *partition = Partition { token, until: Some(until), shut: false, leaving: false };
        }
    }

    /// Owns it for longer, unless it was lost meanwhile.
    pub(crate) fn keep(&self, partition: usize, token: &str, until: Instant) {
        if let Some(partition) = self.lock().partition(partition)
            && partition.token == token
            && let Some(former) = &mut partition.until
        {
            *former = until.max(*former);
        }
    }

    /// Those that are owned: with their tokens, and until when.
    pub(crate) fn all_owned(&self) -> Vec<(usize, String, Instant)> {
        let table = self.lock();
        let owned = table.partitions.iter().flatten().enumerate();
        owned.filter_map(|(index, one)| Some((index, one.token.clone(), one.until?))).collect()
    }

    /// Forgets a partition that is somebody else's, and what is held of it. Returns whether it was
    /// owned with this token.
    pub(crate) fn lose(&self, partition: usize, token: &str) -> bool {
        let mut table = self.lock();
        let known = table.partition(partition);
        let Some(known) = known.filter(|one| one.token == token && one.until.is_some()) else {
            return false;
        };
        *known = Partition::default();
        let of_it = |entry: &&Entry| entry.holding.source / 2 == partition;
        let lost: Vec<_> = table.entries.values().filter(of_it).map(|e| e.holding.tag).collect();
        for tag in lost {
            table.remove(tag);
        }
        true
    }

    /// Of a shut partition: whether all is back, and what of it waits, which goes back now.
    pub(crate) fn reopen(&self, partition: usize) -> Reopening {
        let mut table = self.lock();
        if !table.partition(partition).is_some_and(|partition| partition.shut) {
            return Reopening::Open;
        }
        let of_it = |holding: &Holding| holding.source / 2 == partition;
        let waiting = table.take_waiting(of_it);
        // Those that wait are among them until the server has them.
        if table.entries.values().any(|entry| of_it(&entry.holding)) {
            return Reopening::Not(waiting);
        }
        table.set(partition, |partition| partition.shut = false);
        Reopening::Again
    }

    /// Keeps an ordered partition from handing out more; see [`reopen`](Self::reopen).
    pub(crate) fn shut(&self, partition: usize) {
        self.lock().set(partition, |partition| partition.shut = true);
    }

    /// Keeps a partition that is to be given up from handing out more.
    pub(crate) fn leave(&self, partition: usize) {
        self.lock().set(partition, |partition| partition.leaving = true);
    }

    /// What of a leaving partition waits, which goes back now; `None` once all is back.
    pub(crate) fn drain(&self, partition: usize) -> Option<Vec<Holding>> {
        let mut table = self.lock();
        let of_it = |holding: &Holding| holding.source / 2 == partition;
        let waiting = table.take_waiting(of_it);
        table.entries.values().any(|entry| of_it(&entry.holding)).then_some(waiting)
    }

    /// Lets a leaving partition hand out again, from its beginning; not while something is on its
    /// way back, which comes before what follows.
    pub(crate) fn stay(&self, partition: usize) -> bool {
        let mut table = self.lock();
        let back =
            |entry: &Entry| entry.holding.source / 2 == partition && entry.state != State::Out;
        if table.entries.values().any(back) {
            return false;
        }
        table.set(partition, |partition| partition.leaving = false);
        true
    }
}

impl Table {
    fn set(&mut self, partition: usize, change: impl FnOnce(&mut Partition)) {
        if let Some(partition) = self.partition(partition) {
            change(partition);
        }
    }
}
