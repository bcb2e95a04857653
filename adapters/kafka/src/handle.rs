//! Handles of the client that are replaced when they are of no use any more.
//!
//! A broker that the cluster has fenced, since it stood still or has only just started, answers that
//! there are topics but no brokers. The client then lets go of every broker that it knows, the ones it
//! was configured with included, and never reaches one again, though the broker is back a moment
//! later. It says so nowhere but in its log.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anybroker_core::Result;
use tokio::runtime;

/// What a handle's log says of the brokers that it knows.
#[derive(Default)]
pub(crate) struct Brokers(AtomicU8);

/// Why a handle is replaced that has let all brokers go.
pub(crate) const WITHOUT_BROKERS: &str =
    "a broker answered that there are no brokers, and the client let go of all that it knew";

const NONE_YET: u8 = 0;
const SOME: u8 = 1;
const LOST: u8 = 2;

impl Brokers {
    /// Notes what a line of the client's log says. Returns whether it says that all were let go.
    pub(crate) fn note(&self, line: &str) -> bool {
        let (from, to) = match counted(line) {
            Some((1.., _)) => (NONE_YET, SOME),
            // Who has learned of none yet keeps those of its configuration. An answer without topics
            // is none to the client, which asks again.
            Some((0, 1..)) => (SOME, LOST),
            _ => return false,
        };
        let changed = self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        changed.is_ok() && to == LOST
    }

    pub(crate) fn are_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed) == LOST
    }
}

/// Reads `…: 3 brokers, 7 topics`.
fn counted(line: &str) -> Option<(usize, usize)> {
    let (before, topics) = line.strip_suffix(" topics")?.rsplit_once(" brokers, ")?;
    let (_, brokers) = before.rsplit_once(": ")?;
    Some((brokers.parse().ok()?, topics.parse().ok()?))
}

/// One handle of the client at a time.
pub(crate) struct Handle<T> {
    current: RwLock<Arc<T>>,
    create: Box<dyn Fn() -> Result<T> + Send + Sync>,
    runtime: runtime::Handle,
}

impl<T: Send + Sync + 'static> Handle<T> {
    /// # Errors
    /// Those of `create`.
    pub(crate) fn new(create: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let first = create()?;
        Ok(Self::begun(first, create))
    }

    /// Begins with one that there is already.
    pub(crate) fn begun(first: T, create: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        let (current, create) = (RwLock::new(Arc::new(first)), Box::new(create));
        Self { current, create, runtime: runtime::Handle::current() }
    }

    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another one in the place of this one, unless somebody has; returns the one to use.
    pub(crate) fn replace(&self, useless: &Arc<T>, cause: &'static str) -> Arc<T> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, useless) {
            return Arc::clone(&current);
        }
        match (self.create)() {
            Ok(other) => {
                tracing::warn!(cause, "another handle of the Kafka client takes over");
                let useless = std::mem::replace(&mut *current, Arc::new(other));
                // It waits for its own threads, one of which may be the one that is here.
                self.runtime.spawn_blocking(move || {
                    while Arc::strong_count(&useless) > 1 {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, cause, "no other handle of the Kafka client can take over");
            }
        }
        Arc::clone(&current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_brokers_loses_those_that_were_known() {
        let brokers = Brokers::default();
        let line = |text: &str| format!("[thrd:main]: 127.0.0.1:9092/1: {text}");
        assert!(!brokers.note(&line("0 brokers, 2 topics")), "it has learned of none yet");
        assert!(!brokers.note(&line("3 brokers, 0 topics")));
        assert!(!brokers.note(&line("0 brokers, 0 topics")), "the client asks again");
        assert!(!brokers.note(&line("  Topic brokers with 2 partitions")));
        assert!(!brokers.are_lost());
        assert!(brokers.note(&line("0 brokers, 2 topics")));
        assert!(brokers.are_lost());
    }
}
