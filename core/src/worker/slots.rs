use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::coop::has_budget_remaining;

use super::pulse::Pulse;
use crate::Envelope;
use crate::cause::while_handling;

/// A table of running futures, each with a value beside it. Slots keep their allocation and their
/// waker, so that starting a future allocates nothing once the table is warm.
pub(super) struct Slots<F, T> {
    table: Vec<Slot<F, T>>,
    free: Vec<usize>,
    woken: Arc<Woken>,
    scratch: Vec<usize>,
    limit: usize,
    pulse: Arc<Pulse>,
    /// The message that a value's future handles.
    envelope: fn(&T) -> Option<&Arc<Envelope>>,
}

struct Slot<F, T> {
    future: Pin<Box<Option<F>>>,
    value: Option<T>,
    flag: Arc<SlotWaker>,
    waker: Waker,
}

/// What a finished future answered: its output, or the panic that ended it.
pub(super) type Answer<O> = Result<O, Box<dyn Any + Send>>;

impl<F: Future, T> Slots<F, T> {
    pub(super) fn new(
        limit: usize,
        pulse: Arc<Pulse>,
        envelope: fn(&T) -> Option<&Arc<Envelope>>,
    ) -> Self {
        Self {
            table: Vec::new(),
            free: Vec::new(),
            woken: Arc::default(),
            scratch: Vec::new(),
            limit,
            pulse,
            envelope,
        }
    }

    pub(super) fn free(&self) -> usize {
        self.limit - self.running()
    }

    pub(super) fn running(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Starts a future and polls it once; a future that is ready at once takes no further part.
    pub(super) fn start(&mut self, future: F, value: T) -> Option<(T, Answer<F::Output>)> {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.table.len();
            self.table.push(Slot::new(index, Arc::clone(&self.woken)));
            index
        });
        let slot = &mut self.table[index];
        slot.future.set(Some(future));
        slot.value = Some(value);
        self.poll_slot(index)
    }

    /// Has `waker` woken when a future wants to be polled, and notes those that do already.
    pub(super) fn register(&mut self, waker: &Waker) {
        let mut woken = self.woken.lock();
        if !woken.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            woken.waker = Some(waker.clone());
        }
        if self.scratch.is_empty() {
            std::mem::swap(&mut woken.indexes, &mut self.scratch);
        }
    }

    /// Polls the noted futures until one finishes.
    ///
    /// Each is polled once before any is polled again. Where those before it have used up the steps
    /// that tokio gives a task in one go, so that it could get nowhere, it is polled in the next.
    pub(super) fn next_finished(&mut self) -> Option<(T, Answer<F::Output>)> {
        while let Some(index) = self.scratch.pop() {
            if !has_budget_remaining() {
                self.scratch.push(index);
                self.woken.wake(None);
                return None;
            }
            if let Some(finished) = self.poll_slot(index) {
                return Some(finished);
            }
        }
        None
    }

    /// Drops all running futures and answers what stood beside them.
    pub(super) fn cancel_all(&mut self) -> Vec<T> {
        self.free.clear();
        self.free.extend(0..self.table.len());
        let cancelled = self.table.iter_mut().filter_map(|slot| {
            // A destructor of the user's may panic; the other deliveries are settled all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| slot.future.set(None)));
            slot.value.take()
        });
        cancelled.collect()
    }

    fn poll_slot(&mut self, index: usize) -> Option<(T, Answer<F::Output>)> {
        let slot = &mut self.table[index];
        slot.flag.queued.store(false, Ordering::Release);
        let Slot { future, waker, value, .. } = slot;
        let envelope = value.as_ref().and_then(self.envelope);
        let kind = || envelope.map_or("", |envelope| &*envelope.r#type).to_owned();
        // A wake-up that was meant for the slot's former future finds the slot empty or polls the
        // new one for nothing.
        let polled = self.pulse.step(kind, || {
            catch_unwind(AssertUnwindSafe(|| {
                let future = future.as_mut().as_pin_mut()?;
                Some(while_handling(envelope, || future.poll(&mut Context::from_waker(waker))))
            }))
        });
        let answer = match polled {
            Ok(None | Some(Poll::Pending)) => return None,
            Ok(Some(Poll::Ready(output))) => Ok(output),
            Err(panic) => Err(panic),
        };
        let dropped = catch_unwind(AssertUnwindSafe(|| slot.future.set(None)));
        self.free.push(index);
        let value = slot.value.take()?;
        Some((value, dropped.and(answer)))
    }
}

impl<F, T> Slot<F, T> {
    fn new(index: usize, woken: Arc<Woken>) -> Self {
        let flag = Arc::new(SlotWaker { index, queued: AtomicBool::new(false), woken });
        let waker = Waker::from(Arc::clone(&flag));
        Self { future: Box::pin(None), value: None, flag, waker }
    }
}

/// The slots that want to be polled, and who polls them.
#[derive(Default)]
struct Woken(Mutex<WokenState>);

#[derive(Default)]
struct WokenState {
    indexes: Vec<usize>,
    waker: Option<Waker>,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, WokenState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who polls the slots, for one of them.
    fn wake(&self, index: Option<usize>) {
        let waker = {
            let mut woken = self.lock();
            woken.indexes.extend(index);
            woken.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct SlotWaker {
    index: usize,
    queued: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        self.woken.wake(Some(self.index));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};

    use tokio::sync::oneshot;

    use super::*;

    fn slots<F: Future, T>(limit: usize) -> Slots<F, T> {
        Slots::new(limit, Pulse::start("test".to_owned()), |_| None)
    }

    #[test]
    fn a_ready_future_leaves_its_slot_at_once() {
        let mut slots = slots(1);
        for value in 0..3 {
            let (back, answer) = slots.start(ready(value * 2), value).unwrap();
            assert_eq!((back, answer.unwrap()), (value, value * 2));
            assert_eq!(slots.free(), 1);
        }
        assert_eq!(slots.table.len(), 1, "the slot was reused");
    }

    #[tokio::test]
    async fn a_woken_future_is_polled_and_the_others_are_not() {
        let mut slots = slots(2);
        let (first, second) = (oneshot::channel::<u32>(), oneshot::channel::<u32>());
        assert!(slots.start(first.1, "first").is_none());
        assert!(slots.start(second.1, "second").is_none());
        second.0.send(2).unwrap();
        let (value, answer) = std::future::poll_fn(|cx| {
            slots.register(cx.waker());
            slots.next_finished().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        assert_eq!((value, answer.unwrap()), ("second", Ok(2)));
        assert_eq!(slots.running(), 1);
        drop(first.0);
    }

    #[test]
    fn a_panic_is_an_answer_and_frees_the_slot() {
        let mut slots = slots(1);
        let (value, answer) = slots.start(async { panic!("boom") }, 7).unwrap();
        assert_eq!(value, 7);
        let answer: Answer<()> = answer;
        assert!(answer.is_err());
        assert_eq!(slots.free(), 1);
    }

    #[test]
    fn cancelling_answers_every_value_and_frees_every_slot() {
        let mut slots = slots(3);
        for value in 0..3 {
            assert!(slots.start(pending::<()>(), value).is_none());
        }
        assert_eq!(slots.cancel_all(), [0, 1, 2]);
        assert_eq!(slots.free(), 3);
        let _: Option<(i32, Answer<()>)> = slots.next_finished();
    }

    #[test]
    fn the_table_grows_to_its_limit_only() {
        let slots = slots::<Ready<()>, ()>(5);
        assert_eq!((slots.free(), slots.running()), (5, 0));
    }
}
