use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a broker that stays away is named.
const REMINDER: Duration = Duration::from_secs(30);

/// Says in the log that a broker is away and why, as long as it is so, and when it is back.
///
/// One line at WARN when it goes, one each 30 s at most while it stays away, however often an
/// adapter tries, and one at INFO when it is back, with how long that took. The last cause is kept
/// for what fails meanwhile, and for [`Broker::health`](crate::Broker::health).
#[derive(Debug)]
pub struct Outage {
    link: &'static str,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    said: Instant,
    tries: u64,
    cause: String,
}

impl Outage {
    /// None so far. `link` says which of an adapter's connections it is about.
    pub const fn new(link: &'static str) -> Self {
        Self { link, state: Mutex::new(None) }
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the connection was lost, or that another try to get it back has failed. The cause
    /// must hold no secret.
    pub fn goes_on(&self, cause: impl Display) {
        let (link, now, cause) = (self.link, Instant::now(), cause.to_string());
        let mut state = self.state();
        match &mut *state {
            None => {
                tracing::warn!(link, cause, "the broker is away; trying until it is back");
                *state = Some(State { since: now, said: now, tries: 0, cause });
            }
            Some(state) => {
                (state.tries, state.cause) = (state.tries + 1, cause);
                if now.duration_since(state.said) >= REMINDER {
                    state.said = now;
                    let (cause, tries) = (&state.cause, state.tries);
                    let for_s = now.duration_since(state.since).as_secs();
                    tracing::warn!(link, cause, tries, for_s, "the broker is still away");
                }
            }
        }
    }

    /// Notes that it is back, if it was away.
    pub fn ends(&self) {
        let Some(ended) = self.state().take() else { return };
        let after_ms = u64::try_from(ended.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(link = self.link, after_ms, "the broker is back");
    }

    /// The last cause and since when, while it lasts: "away for 12 s: …".
    pub fn cause(&self) -> Option<String> {
        self.state()
            .as_ref()
            .map(|state| format!("away for {} s: {}", state.since.elapsed().as_secs(), state.cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cause_is_kept_until_it_ends() {
        let outage = Outage::new("publish");
        assert_eq!(outage.cause(), None);
        outage.goes_on("nothing listens there");
        outage.goes_on("the log-in was refused");
        assert_eq!(outage.cause().as_deref(), Some("away for 0 s: the log-in was refused"));
        outage.ends();
        assert_eq!(outage.cause(), None);
    }
}
