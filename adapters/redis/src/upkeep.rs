//! What a consumer does beside reading: it moves what is due, takes over what others left and
//! removes what is finished.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anybroker_core::{ErrorKind, Result, RetryClass, now};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::consume::Reader;
use crate::held::Source;
use crate::link::Call;
use crate::scripts::{MOVE, TRIM};
use crate::settle::Shared;

/// How often a consumer looks for what is due, and for what others left behind.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// Looking for what others left behind takes longer the more is in flight: no more than a
/// twentieth of the time is spent on it.
const CLAIM_SHARE: u32 = 20;

/// How often it removes what all groups have finished.
pub(crate) const TRIM_EVERY: Duration = Duration::from_secs(2);
/// The most entries that it removes from a stream in one step, and in how many steps on end.
const TRIM_LOT: usize = 10_000;
const TRIM_LOTS: usize = 50;

/// The most bytes that become due in one step, during which the server does nothing else.
const MOVED_BYTES: usize = 4 * 1024 * 1024;

impl Reader {
    /// Moves what is due, takes over what others left, and removes what is finished.
    pub(crate) async fn tick(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut next = TICK;
        if shared.group.ordered {
            self.own().await?;
        }
        let to_move = 0..shared.group.partitions.len();
        let to_move = to_move.filter(|index| !shared.group.ordered || shared.held.is_owned(*index));
        // At once: one that is answered late keeps none of the others.
        let moved = to_move.map(async |index| (index, move_due(&shared, index).await));
        for (index, moved) in join_all(moved).await {
            match moved {
                Ok((due, refused)) => {
                    if refused != self.unmoved[index] {
                        if !refused.is_empty() {
                            let key = &shared.group.partitions[index].delayed;
                            tracing::warn!(key, refused, "some of what is due cannot be moved");
                        }
                        self.unmoved[index] = refused;
                    }
                    if let Ok(due) = u64::try_from(due) {
                        next = next.min(Duration::from_millis(due + 1));
                    }
                }
                Err(error)
                    if error.retry_class() == RetryClass::Permanent
                        || matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) =>
                {
                    return Err(error);
                }
                // Refused, it stays where it is. What is below must go on, and may be what helps.
                Err(error) => tracing::warn!(%error, "what is due could not be moved"),
            }
        }
        self.next_tick = Instant::now() + next;
        let begun = Instant::now();
        if self.recover_at.is_some_and(|at| at <= begun) {
            self.recover().await?;
            self.recover_at = None;
        }
        if !shared.group.ordered && self.next_claim <= begun {
            self.claim_all().await?;
            let pause = CLAIM_SHARE * begun.elapsed();
            self.next_claim = begun + pause.min(TICK.max(shared.lease() / 4));
        }
        if self.next_trim <= Instant::now() && shared.settled.swap(false, Ordering::Relaxed) {
            let trimmed = self.trim().await;
            if !matches!(trimmed, Ok(true)) {
                shared.settled.store(true, Ordering::Relaxed);
            }
            trimmed?;
        }
        Ok(())
    }

    /// Removes what all groups have finished; answers whether that was all of it.
    async fn trim(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let meta = shared.group.layout.meta();
        let whose = if self.topology.settings.trim_foreign { "any" } else { "ours" };
        let trimmed = (0..self.cursors.len()).map(|source| trim(&shared, source, &meta, whose));
        let (mut all, mut failed) = (true, Ok(()));
        for (source, trimmed) in join_all(trimmed).await.into_iter().enumerate() {
            match trimmed {
                Ok(Trimmed::All) => {}
                Ok(Trimmed::Some) => all = false,
                Ok(Trimmed::Foreign) => self.untrimmed(shared.group.stream(source)),
                Err(error) => failed = Err(error),
            }
        }
        self.next_trim = Instant::now() + TRIM_EVERY;
        failed.map(|()| all)
    }

    /// Says once that a stream grows.
    fn untrimmed(&mut self, stream: &str) {
        if !std::mem::replace(&mut self.told_untrimmed, true) {
            tracing::info!(
                stream,
                "somebody else made this stream, so that nothing is removed from it; to have what all groups have finished removed, connect with trim-foreign=yes"
            );
        }
    }
}

/// What came of trimming a stream.
enum Trimmed {
    All,
    /// There may be more.
    Some,
    /// Somebody else made it, and nothing is removed from it.
    Foreign,
}

/// Moves what is due in a partition. Returns in how many milliseconds the next is due, or -1, and
/// why some of it stays, or nothing.
async fn move_due(shared: &Shared, index: usize) -> Result<(i64, String)> {
    let partition = &shared.group.partitions[index];
    let call = Call::new(&MOVE).key(&partition.delayed).key(&partition.retry).arg(MOVED_BYTES);
    let asked = now();
    let (due, time, refused) = shared.link.run("move what is due", &call).await?;
    shared.link.note_time(asked, time);
    Ok((due, refused))
}

async fn trim(shared: &Shared, source: Source, meta: &str, whose: &str) -> Result<Trimmed> {
    let call = Call::new(&TRIM).key(shared.group.stream(source)).key(meta).arg(TRIM_LOT);
    // What came back to a group is in a stream that nobody else has to do with.
    let call = if source.is_multiple_of(2) { call.arg(source / 2) } else { call.arg("") };
    let call = call.arg(whose);
    for _ in 0..TRIM_LOTS {
        let trimmed = shared.link.run::<i64>("trim", &call).await?;
        let Ok(trimmed) = usize::try_from(trimmed) else { return Ok(Trimmed::Foreign) };
        // It stops where the next node would be too much.
        if trimmed < TRIM_LOT / 2 {
            return Ok(Trimmed::All);
        }
    }
    Ok(Trimmed::Some)
}
