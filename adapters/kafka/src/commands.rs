use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use anybroker_core::{Delivery, ErrorKind, InboxSender, Result};
use tokio::sync::{oneshot, watch};

use crate::error::stale;

/// What the thread that reads for a group is told: by settlers, consumers and the broker.
pub(crate) struct Commands {
    queue: Mutex<Queue>,
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    /// Whether it was to be woken since it last slept.
    woken: AtomicBool,
    /// How many commands are worth waking the thread.
    batch: AtomicUsize,
    pub(crate) closing: AtomicBool,
    /// Whether the thread ended by an error.
    pub(crate) failed: AtomicBool,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    commands: Vec<Command>,
    /// The partitions that are this process's, by the number of their assignment.
    assigned: Vec<u16>,
    /// Those of them that are about to be another's: no handler is to start.
    leaving: Vec<u16>,
    /// Whether the thread takes no more.
    ended: bool,
}

pub(crate) enum Command {
    Settled(u64, Settled),
    Join(Box<Seat>),
    Leave(u32),
    /// Commits, then answers.
    Flush(oneshot::Sender<()>),
}

/// What became of a delivery.
#[derive(Clone, Copy)]
pub(crate) enum Settled {
    Finished,
    /// It is handed out again after a while, having come back so often.
    GivenBack {
        returned: u32,
        after: Duration,
    },
    /// It is handed out again, and this counts.
    Dropped,
    /// No handler saw it: it is handed out again, and this does not count.
    Unseen,
}

/// One consumer of a group in this process.
pub(crate) struct Seat {
    pub(crate) number: u32,
    pub(crate) inbox: InboxSender,
    pub(crate) settler: Arc<dyn anybroker_core::Settler>,
    pub(crate) prefetch: usize,
    pub(crate) held: usize,
    pub(crate) leaving: bool,
    /// What is about to be handed over.
    pub(crate) lot: Vec<Delivery>,
}

impl Seat {
    /// Hands over what was put into its lot.
    pub(crate) fn hand_over(&mut self) {
        if self.lot.is_empty() {
            return;
        }
        // Who holds no more than it has places for has one for each lot, unless it was slow to take
        // what was revoked since. What it does not take is released.
        let next = Vec::with_capacity(self.lot.len());
        if let Err(error) = self.inbox.deliver_lot(std::mem::replace(&mut self.lot, next)) {
            self.leaving |= error.kind() == ErrorKind::Closed;
        }
    }
}

struct Announcement(Arc<Commands>);

impl Drop for Announcement {
    fn drop(&mut self) {
        self.0.end();
        self.0.ended.send_replace(true);
    }
}

const PLACE_BITS: u32 = 48;

/// What a settler knows a delivery by: its assignment and its offset.
pub(crate) fn tag(assignment: u16, offset: i64) -> u64 {
    // Offsets have room for 281 trillion messages in a partition.
    let place = u64::try_from(offset).unwrap_or(0) & ((1 << PLACE_BITS) - 1);
    u64::from(assignment) << PLACE_BITS | place
}

pub(crate) fn place(tag: u64) -> (u16, i64) {
    let place = tag & ((1 << PLACE_BITS) - 1);
    (assignment(tag), i64::try_from(place).unwrap_or(0))
}

fn assignment(tag: u64) -> u16 {
    u16::try_from(tag >> PLACE_BITS).unwrap_or(u16::MAX)
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            thread: OnceLock::new(),
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            batch: AtomicUsize::new(1),
            closing: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            ended: watch::channel(false).0,
        }
    }
}

impl Commands {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, command: Command) {
        self.lock().commands.push(command);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Settles a delivery.
    ///
    /// # Errors
    /// `StaleDelivery` when its partition is another's.
    pub(crate) fn settle(&self, tag: u64, settled: Settled) -> Result<()> {
        let urgent = !matches!(settled, Settled::Finished);
        let waiting = {
            let mut queue = self.lock();
            let assignment = assignment(tag);
            if queue.ended || !queue.assigned.contains(&assignment) {
                return Err(stale());
            }
            // What was to be started when its partition leaves was not: that is no attempt.
            let settled = match settled {
                Settled::Dropped if queue.leaving.contains(&assignment) => Settled::Unseen,
                settled => settled,
            };
            queue.commands.push(Command::Settled(tag, settled));
            queue.commands.len()
        };
        if urgent || waiting >= self.batch.load(Ordering::Relaxed) {
            self.wake();
        }
        Ok(())
    }

    /// Whether a delivery is this process's.
    pub(crate) fn is_assigned(&self, tag: u64) -> bool {
        let queue = self.lock();
        !queue.ended && queue.assigned.contains(&assignment(tag))
    }

    /// Whether a delivery is this process's, and to stay.
    pub(crate) fn is_kept(&self, tag: u64) -> bool {
        let (queue, assignment) = (self.lock(), assignment(tag));
        !queue.ended && queue.assigned.contains(&assignment) && !queue.leaving.contains(&assignment)
    }

    /// Adds a consumer, unless the thread ends.
    pub(crate) fn join(&self, seat: Seat) -> Result<(), Seat> {
        {
            let mut queue = self.lock();
            if queue.ended {
                return Err(seat);
            }
            queue.commands.push(Command::Join(Box::new(seat)));
        }
        self.wake();
        Ok(())
    }

    pub(crate) fn leave(&self, seat: u32) {
        self.push(Command::Leave(seat));
    }

    /// Commits what is settled, if the thread is at work.
    pub(crate) async fn flush(&self) {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.lock();
            if queue.ended {
                return;
            }
            queue.commands.push(Command::Flush(answer));
        }
        self.wake();
        // Without an answer it has ended, and committed for the last time.
        let _ = answered.await;
    }

    /// Resolves when the thread has ended.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as this does.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake();
    }

    // What the thread itself calls.

    pub(crate) fn started(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    pub(crate) fn take(&self, into: &mut Vec<Command>) {
        into.append(&mut self.lock().commands);
    }

    /// Ends, unless there is something to do first.
    pub(crate) fn end_if_idle(&self) -> bool {
        let mut queue = self.lock();
        queue.ended = queue.commands.is_empty();
        queue.ended
    }

    /// Takes no more commands. What is still settled is too late.
    pub(crate) fn end(&self) {
        let mut queue = self.lock();
        (queue.ended, queue.commands) = (true, Vec::new());
    }

    /// Says so when it is dropped, however the thread ends.
    pub(crate) fn announce_end(self: &Arc<Self>) -> impl Drop + use<> {
        Announcement(Arc::clone(self))
    }

    pub(crate) fn assign(&self, assignment: u16) {
        self.lock().assigned.push(assignment);
    }

    pub(crate) fn set_leaving(&self, assignments: &[u16]) {
        self.lock().leaving = assignments.to_vec();
    }

    /// From here on what is settled of these is too late.
    pub(crate) fn revoke(&self, assignments: &[u16]) {
        let mut queue = self.lock();
        queue.assigned.retain(|known| !assignments.contains(known));
        queue.leaving.clear();
    }

    /// Sleeps for at most so long, until so many commands wait or something is urgent.
    pub(crate) fn sleep(&self, time: Duration, batch: usize) {
        self.batch.store(batch, Ordering::Relaxed);
        self.asleep.store(true, Ordering::SeqCst);
        let woken = self.woken.swap(false, Ordering::SeqCst);
        if !woken && self.lock().commands.len() < batch && !self.closing.load(Ordering::SeqCst) {
            std::thread::park_timeout(time);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}
