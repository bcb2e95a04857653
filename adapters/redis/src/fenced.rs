//! Scripts that settle only what is still this consumer's, and what they return.

use std::collections::BTreeMap;

use anybroker_core::adapter::pause;
use anybroker_core::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::error::refused;
use crate::held::{Holding, Source};
use crate::link::Call;
use crate::scripts::FORGOTTEN;
use crate::settle::Shared;

/// What a fenced script answered.
pub(crate) struct Fenced {
    /// The places of those that were not this consumer's any more, in their order.
    pub(crate) lost: Vec<usize>,
    /// The places of those that the server refused, with its error.
    pub(crate) refused: BTreeMap<usize, String>,
    /// Whether an earlier answer was lost: then what is not this consumer's may be so since it was
    /// settled.
    pub(crate) again: bool,
}

impl Fenced {
    /// Takes back that these were not this consumer's; both are in order.
    pub(crate) fn find(&mut self, found: &[usize]) {
        self.lost.retain(|place| !found.contains(place));
    }

    pub(crate) fn is_mine(&self, place: usize) -> bool {
        self.lost.binary_search(&place).is_err()
    }

    /// The error of one that the server refused.
    pub(crate) fn refusal(&self, place: usize) -> Option<Error> {
        let text = self.refused.get(&place)?;
        Some(refused("settle", "its copy cannot be stored", text.clone()))
    }
}

impl Shared {
    /// Runs a fenced script, and again when the connection was lost before the answer came: that
    /// is safe, and only leaves it open whether it was the first time that it took effect.
    pub(crate) async fn fenced(&self, call: &Call<'_>) -> Result<Fenced> {
        let end = Instant::now() + self.lease();
        let mut attempt = 0;
        loop {
            match self.link.run("settle", call).await {
                Ok((lost, refused)) => {
                    return Ok(Fenced { lost, refused, again: attempt > 0 });
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                    attempt += 1;
                    pause(attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Of what was not this consumer's, the places of what nobody else can have had, since its lease
    /// still holds: somebody deleted the consumer from the group, and all that it had pending with
    /// it. Taken for stale, it would be lost.
    pub(crate) async fn forgotten(
        &self,
        fenced: &Fenced,
        source: Source,
        (mode, back): (&str, u32),
        holdings: impl Iterator<Item = Holding> + Send,
    ) -> Result<Vec<usize>> {
        // After a lost answer it may be what this consumer settled itself.
        if fenced.lost.is_empty() || fenced.again {
            return Ok(Vec::new());
        }
        let now = Instant::now();
        let mut call = self.call(&FORGOTTEN, source, &[]).arg(mode).arg(back);
        let mut any = false;
        for (place, holding) in holdings.enumerate() {
            if !fenced.is_mine(place) && holding.until > now {
                call = call.arg(place).arg(holding.id.to_string()).arg(holding.count);
                any = true;
            }
        }
        if !any {
            return Ok(Vec::new());
        }
        let found = self.fenced(&call).await?.lost;
        if !found.is_empty() {
            let (consumer, stream) = (&self.consumer, self.group.stream(source));
            let count = found.len();
            tracing::warn!(count, consumer, stream, "somebody deleted the consumer from its group");
        }
        Ok(found)
    }
}
