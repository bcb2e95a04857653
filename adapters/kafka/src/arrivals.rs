use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use crate::commands::Commands;
use crate::partition::Kept;

/// What a group's reader has read and its clerk has not yet put on the desk.
///
/// Nothing of it is handed out: when its partition is another's, it is let go. It knows the
/// assignment that it was read for, so that no later one takes it for its own.
#[derive(Default)]
pub(crate) struct Arrivals {
    state: Mutex<State>,
    reader: OnceLock<Thread>,
}

/// A message that was read.
pub(crate) struct Arrival {
    pub(crate) assignment: u16,
    pub(crate) offset: i64,
    pub(crate) message: Kept,
}

#[derive(Default)]
struct State {
    arrived: Vec<Arrival>,
    /// What is finished, for the reader to free: it allocated it, and an allocator lets a thread
    /// wait for another whose memory it frees.
    spent: Vec<Kept>,
    /// How many there is room for, here and on the desk, and how many wait on the desk.
    window: usize,
    waiting: usize,
    /// Whether the reader found no room, and waits to be woken when there is some.
    waits: bool,
    ended: bool,
}

/// Ends both threads when one of them ends, however it does.
pub(crate) struct End<'a>(pub(crate) &'a Arrivals, pub(crate) &'a Commands);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let Self(arrivals, commands) = self;
        arrivals.lock().ended = true;
        arrivals.wake();
        commands.wake();
    }
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the reader.
    pub(crate) fn wake(&self) {
        if let Some(reader) = self.reader.get() {
            reader.unpark();
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.lock().ended
    }

    // What the clerk calls.

    /// Takes what has arrived, and gives what is finished.
    pub(crate) fn exchange(&self, arrived: &mut Vec<Arrival>, spent: &mut Vec<Kept>) {
        let mut state = self.lock();
        std::mem::swap(&mut state.arrived, arrived);
        state.spent.append(spent);
    }

    /// Says how many wait on the desk, and how many may in all.
    pub(crate) fn report(&self, waiting: usize, window: usize) {
        let mut state = self.lock();
        (state.waiting, state.window) = (waiting, window);
        if state.waits && !state.is_full() {
            state.waits = false;
            drop(state);
            self.wake();
        }
    }

    // What the reader calls.

    pub(crate) fn started(&self) {
        let _ = self.reader.set(std::thread::current());
    }

    /// Whether there is no room; if so, the reader is woken when there is.
    pub(crate) fn is_full(&self) -> bool {
        let mut state = self.lock();
        state.waits = state.is_full();
        state.waits
    }

    /// Gives what was read, and takes what is finished; answers whether there is anything new.
    pub(crate) fn push(&self, lot: &mut Vec<Arrival>, spent: &mut Vec<Kept>) -> bool {
        let mut state = self.lock();
        std::mem::swap(&mut state.spent, spent);
        state.arrived.append(lot);
        !state.arrived.is_empty()
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.arrived.len() + self.waiting >= self.window
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use anybroker_core::Envelope;

    use super::*;

    #[test]
    fn the_reader_is_woken_whatever_made_it_full() {
        let arrivals = Arrivals::default();
        arrivals.started();
        arrivals.report(0, 1);
        let message = (Envelope::new("t", "").into(), None);
        arrivals.push(&mut vec![Arrival { assignment: 0, offset: 0, message }], &mut Vec::new());
        assert!(arrivals.is_full());
        // The clerk takes what has arrived before it says how much waits.
        arrivals.exchange(&mut Vec::new(), &mut Vec::new());
        arrivals.report(0, 1);
        let since = Instant::now();
        std::thread::park_timeout(Duration::from_secs(30));
        assert!(since.elapsed() < Duration::from_secs(30) && !arrivals.is_full());
    }
}
