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
        let was_full = state.is_full();
        (state.waiting, state.window) = (waiting, window);
        if was_full && !state.is_full() {
            drop(state);
            self.wake();
        }
    }

    // What the reader calls.

    pub(crate) fn started(&self) {
        let _ = self.reader.set(std::thread::current());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lock().is_full()
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
