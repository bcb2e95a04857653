//! What a consumer does for what it holds to stay its own, beside reading: nothing that the reader
//! waits for may cost it a lease.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{ErrorKind, Result};
use tokio::time::{Instant, sleep};

use crate::link::Call;
use crate::scripts::LOCK;
use crate::settle::{Shared, millis};

/// It looks what is to be renewed ten times in a lease, with a pause of this at least and at most.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Renews what is owned in an ordered group, or else what waits here for a handler, when a third of
/// its lease is over; never ends.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let lease = shared.lease();
    loop {
        sleep((lease / 10).clamp(EVERY.0, EVERY.1)).await;
        let soon = Instant::now() + lease * 2 / 3;
        let kept = if shared.group.ordered {
            shared.keep_owning(soon).await
        } else {
            shared.renew(shared.held.to_renew(soon)).await
        };
        if let Err(error) = kept
            && error.kind() != ErrorKind::Closed
        {
            // The reader waits for the same server, and says so when it is gone.
            tracing::debug!(%error, group = %shared.group.name, "a lease was not renewed");
        }
    }
}

impl Shared {
    /// Renews the locks that run out before `soon`. It forgets what others have taken, and what may
    /// be theirs because no answer came before the lock ran out.
    async fn keep_owning(&self, soon: Instant) -> Result<()> {
        let owned = self.held.all_owned();
        let due: Vec<_> = owned.into_iter().filter(|(_, _, until)| *until < soon).collect();
        if due.is_empty() {
            return Ok(());
        }
        let mut call = Call::new(&LOCK);
        for (index, ..) in &due {
            call = call.key(&self.group.partitions[*index].lock);
        }
        call = call.arg(millis(self.lease()));
        for (_, token, _) in &due {
            call = call.arg(token);
        }
        // Not later than the server does.
        let until = Instant::now() + self.lease();
        let answer = self.link.run::<Vec<i64>>("own a partition", &call).await;
        let is_unknown = answer.is_err();
        let kept = answer.as_deref().unwrap_or_default();
        for (place, (index, token, former)) in due.iter().enumerate() {
            match kept.get(place) {
                Some(1) => self.held.keep(*index, token, until),
                // It may be this consumer's still, but not for sure.
                _ if is_unknown && *former > Instant::now() => {}
                _ => self.lose(*index, token),
            }
        }
        answer.map(drop)
    }

    /// What was answered about a partition, unless that is somebody else's now, or was lost while
    /// the answer was on its way: then it must not be handed out, and comes to the next owner.
    pub(crate) fn of_owned<T>(&self, index: usize, token: &str, answer: Option<T>) -> Option<T> {
        if answer.is_none() {
            self.lose(index, token);
        }
        answer.filter(|_| !self.group.ordered || self.held.is_owned_with(index, token))
    }

    fn lose(&self, index: usize, token: &str) {
        if self.held.lose(index, token) {
            let group = &self.group.name;
            tracing::warn!(%group, partition = index, "an ordered partition was lost: its lock ran out");
        }
    }
}
