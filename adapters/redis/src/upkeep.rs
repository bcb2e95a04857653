//! What a consumer does beside reading: it moves what is due, takes over what others left and
//! removes what is finished.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anybroker_core::{ErrorKind, Result, RetryClass, now};
use tokio::time::Instant;

use crate::consume::Reader;
use crate::link::Call;
use crate::scripts::{MOVE, TRIM};

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
        for (index, partition) in shared.group.partitions.iter().enumerate() {
            if shared.group.ordered && !shared.held.is_owned(index) {
                continue;
            }
            let call =
                Call::new(&MOVE).key(&partition.delayed).key(&partition.retry).arg(MOVED_BYTES);
            let asked = now();
            match shared.link.run::<(i64, u64, String)>("move what is due", &call).await {
                Ok((due, time, refused)) => {
                    shared.link.note_time(asked, time);
                    if refused != self.unmoved[index] {
                        if !refused.is_empty() {
                            let key = &partition.delayed;
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
        let (mut all, meta) = (true, shared.group.layout.meta());
        let whose = if self.topology.settings.trim_foreign { "any" } else { "ours" };
        for source in 0..self.cursors.len() {
            let stream = shared.group.stream(source);
            let call = Call::new(&TRIM).key(stream).key(&meta).arg(TRIM_LOT);
            // What came back to a group is in a stream that nobody else has to do with.
            let call = if source.is_multiple_of(2) { call.arg(source / 2) } else { call.arg("") };
            let call = call.arg(whose);
            let mut more = true;
            for _ in 0..TRIM_LOTS {
                let Ok(trimmed) = usize::try_from(shared.link.run::<i64>("trim", &call).await?)
                else {
                    more = false;
                    self.untrimmed(stream);
                    break;
                };
                // It stops where the next node would be too much.
                more = trimmed >= TRIM_LOT / 2;
                if !more {
                    break;
                }
            }
            all &= !more;
        }
        self.next_trim = Instant::now() + TRIM_EVERY;
        Ok(all)
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
