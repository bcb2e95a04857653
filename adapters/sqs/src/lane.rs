use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The most entries of a batch, on SQS and SNS alike.
pub(crate) const ENTRIES: usize = 10;

/// How long a batch waits at most for more jobs while a call could go.
const LINGER: Duration = Duration::from_millis(10);

/// What goes into a batch.
pub(crate) trait Job: Send + 'static {
    /// What it takes of a batch's bytes.
    fn bytes(&self) -> usize {
        0
    }
}

/// Gathers jobs into batches for one call each, several calls at once.
///
/// A batch goes as soon as it is full, or when no call is under way, or after 10 ms: nobody waits
/// for others that may never come or for a call that hangs, and under load calls are full.
///
/// # Ordering
/// Batches are filled and called in the order of the jobs. With one call at a time they also end
/// in it.
pub(crate) struct Lane<J>(mpsc::UnboundedSender<J>);

impl<J: Job> Lane<J> {
    /// Starts it; it ends with its last clone, once all calls have ended. `bytes` is the most a
    /// batch may have. `alive` is dropped then.
    pub(crate) fn start<F, A>(
        calls_at_once: usize,
        bytes: usize,
        alive: A,
        call: impl Fn(Vec<J>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        A: Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            run(receiver, calls_at_once, bytes, Arc::new(call)).await;
            drop(alive);
        });
        Self(sender)
    }

    /// Adds a job; gives it back where the lane has ended.
    pub(crate) fn push(&self, job: J) -> Result<(), J> {
        self.0.send(job).map_err(|unsent| unsent.0)
    }
}

async fn run<J: Job, F: Future<Output = ()> + Send + 'static>(
    mut jobs: mpsc::UnboundedReceiver<J>,
    calls_at_once: usize,
    limit: usize,
    call: Arc<impl Fn(Vec<J>) -> F>,
) {
    let mut calls = JoinSet::new();
    let (mut batch, mut bytes) = (Vec::with_capacity(ENTRIES), 0);
    // The first one that did not fit any more.
    let mut next: Option<J> = None;
    let mut open = true;
    // When the batch has waited for long enough.
    let mut due_at = Instant::now();
    while open || next.is_some() || !batch.is_empty() {
        while batch.len() < ENTRIES {
            let Some(job) = next.take().or_else(|| jobs.try_recv().ok()) else { break };
            if !batch.is_empty() && bytes + job.bytes() > limit {
                next = Some(job);
                break;
            }
            if batch.is_empty() {
                due_at = Instant::now() + LINGER;
            }
            bytes += job.bytes();
            batch.push(job);
        }
        let full = batch.len() == ENTRIES || next.is_some();
        let due = full || calls.is_empty() || !open || due_at <= Instant::now();
        if !batch.is_empty() && due && calls.len() < calls_at_once {
            calls.spawn(call(std::mem::replace(&mut batch, Vec::with_capacity(ENTRIES))));
            bytes = 0;
            continue;
        }
        tokio::select! {
            job = jobs.recv(), if open && !full => match job {
                Some(job) => next = Some(job),
                None => open = false,
            },
            // A call that panicked has dropped its jobs, whose confirmations then say so.
            Some(_) = calls.join_next() => {}
            () = sleep_until(due_at), if !batch.is_empty() && calls.len() < calls_at_once => {}
        }
    }
    while calls.join_next().await.is_some() {}
}

impl<J> Clone for Lane<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J> fmt::Debug for Lane<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    impl Job for (usize, usize) {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    /// Calls all jobs in batches, and answers the numbers in each.
    async fn batches(calls_at_once: usize, jobs: Vec<(usize, usize)>) -> Vec<Vec<usize>> {
        let done = Arc::new(Mutex::new(Vec::new()));
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let noted = Arc::clone(&done);
        let lane = Lane::start(calls_at_once, 100, alive, move |batch: Vec<(usize, usize)>| {
            let noted = Arc::clone(&noted);
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let numbers = batch.iter().map(|(number, _)| *number).collect();
                noted.lock().expect("no panic").push(numbers);
            }
        });
        for job in jobs {
            lane.push(job).expect("it runs");
        }
        drop(lane);
        assert!(ended.recv().await.is_none());
        let done = done.lock().expect("no panic");
        done.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_bounded_by_entries_and_bytes() {
        let small = (0..25).map(|number| (number, 1)).collect();
        let expected: [Vec<usize>; 3] = [(0..10).collect(), (10..20).collect(), (20..25).collect()];
        assert_eq!(batches(1, small).await, expected);

        let large = [40, 40, 40, 60, 101, 1].into_iter().enumerate().collect();
        let expected: [&[usize]; 4] = [&[0, 1], &[2, 3], &[4], &[5]];
        assert_eq!(batches(1, large).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn full_batches_run_at_once() {
        let started = tokio::time::Instant::now();
        let many = (0..80).map(|number| (number, 1)).collect();
        assert_eq!(batches(8, many).await.len(), 8);
        assert_eq!(started.elapsed(), Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_holds_up_no_others() {
        let (called, mut calls) = mpsc::unbounded_channel();
        let lane = Lane::start(2, 100, (), move |batch: Vec<(usize, usize)>| {
            let called = called.clone();
            async move {
                let _ = called.send(batch[0].0);
                std::future::pending::<()>().await;
            }
        });
        for number in 0..2 {
            lane.push((number, 1)).expect("it runs");
            assert_eq!(calls.recv().await, Some(number));
        }
    }
}
