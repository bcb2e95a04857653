use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use rdkafka::message::BorrowedMessage;

use crate::commands::Commands;

/// What a group's reader has read and its clerk has not yet put on the desk.
///
/// Nothing of it is handed out: when its partition is another's, it is let go.
pub(crate) struct Arrivals<M> {
    state: Mutex<State<M>>,
    reader: Bell,
}

/// What was read, and the assignment that it was read for: no later one takes it for its own.
pub(crate) struct Arrival<'a> {
    pub(crate) assignment: u16,
    pub(crate) what: What<'a>,
}

pub(crate) enum What<'a> {
    Message(BorrowedMessage<'a>),
    /// No message before this offset: what is there was passed over.
    Gap(i64),
}

/// Wakes the thread that has taken it.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<OnceLock<Thread>>);

impl Bell {
    pub(crate) fn ring(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

struct State<M> {
    arrived: Vec<M>,
    /// How many there is room for, here and at the clerk's, and how many wait there.
    window: usize,
    waiting: usize,
    /// Whether the reader found no room, and waits to be woken when there is some.
    waits: bool,
    ended: bool,
}

/// Ends both threads when one of them ends, however it does.
pub(crate) struct End<'a, M>(pub(crate) &'a Arrivals<M>, pub(crate) &'a Commands);

impl<M> Drop for End<'_, M> {
    fn drop(&mut self) {
        let Self(arrivals, commands) = self;
        arrivals.lock().ended = true;
        arrivals.reader.ring();
        commands.wake();
    }
}

impl<M> Arrivals<M> {
    pub(crate) fn new(reader: Bell) -> Self {
        let state =
            State { arrived: Vec::new(), window: 0, waiting: 0, waits: false, ended: false };
        Self { state: Mutex::new(state), reader }
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self) -> bool {
        self.lock().ended
    }

    // What the clerk calls.

    /// Takes what has arrived.
    pub(crate) fn take(&self, into: &mut VecDeque<M>) {
        into.extend(self.lock().arrived.drain(..));
    }

    /// Says how many wait at the clerk's, and how many may in all.
    pub(crate) fn report(&self, waiting: usize, window: usize) {
        let mut state = self.lock();
        (state.waiting, state.window) = (waiting, window);
        if state.waits && !state.is_full() {
            state.waits = false;
            drop(state);
            self.reader.ring();
        }
    }

    // What the reader calls.

    pub(crate) fn started(&self) {
        let _ = self.reader.0.set(std::thread::current());
    }

    /// Whether there is no room; if so, the reader is woken when there is.
    pub(crate) fn is_full(&self) -> bool {
        let mut state = self.lock();
        state.waits = state.is_full();
        state.waits
    }

    /// Gives what was read; answers whether the clerk has anything to take.
    pub(crate) fn push(&self, lot: &mut Vec<M>) -> bool {
        let mut state = self.lock();
        state.arrived.append(lot);
        !state.arrived.is_empty()
    }
}

impl<M> State<M> {
    fn is_full(&self) -> bool {
        self.arrived.len() + self.waiting >= self.window
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_reader_is_woken_whatever_made_it_full() {
        let arrivals = Arrivals::new(Bell::default());
        arrivals.started();
        arrivals.report(0, 1);
        arrivals.push(&mut vec!["message"]);
        assert!(arrivals.is_full());
        // The clerk takes what has arrived before it says how much waits.
        arrivals.take(&mut VecDeque::new());
        arrivals.report(0, 1);
        let since = Instant::now();
        std::thread::park_timeout(Duration::from_secs(30));
        assert!(since.elapsed() < Duration::from_secs(30) && !arrivals.is_full());
    }
}
