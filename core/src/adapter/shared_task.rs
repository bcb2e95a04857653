use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::{Error, ErrorKind, Result};

/// Runs work that several callers need, such as connecting, declaring or asking the broker, once at
/// a time and in a task of its own.
///
/// Whoever calls while the work is running waits for its result; a caller whose deadline ends stops
/// waiting, and the work goes on. Work that ran inside its callers would be cut off by the shortest
/// deadline among them, and begun again by the next caller, for ever.
///
/// A result is handed to those who waited for it and then forgotten: keeping a connection, or
/// remembering that something is declared, is up to the work.
///
/// ```
/// # use std::time::Duration;
/// # use anybroker_core::{Result, adapter::SharedTask};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// let connecting = SharedTask::default();
/// let connect = || async {
///     tokio::time::sleep(Duration::from_millis(50)).await;
///     Ok("connected")
/// };
/// let impatient = tokio::time::timeout(Duration::from_millis(1), connecting.run(connect)).await;
/// assert!(impatient.is_err());
/// // The first attempt is still running, and this call gets its result.
/// assert_eq!(connecting.run(|| async { Ok("another") }).await?, "connected");
/// # Ok(()) }
/// ```
pub struct SharedTask<T>(Mutex<Option<watch::Receiver<Running<T>>>>);

/// `None` until the work has ended. The error is shared, since it is made anew for each who waits.
type Running<T> = Option<Result<T, Arc<Error>>>;

impl<T: Clone + Send + Sync + 'static> SharedTask<T> {
    /// Waits for the work that is running, or begins it where none is.
    ///
    /// # Cancel safety
    /// Dropped, it stops waiting; the work goes on.
    ///
    /// # Errors
    /// Those of the work; its source stays with the first one. `Closed` where the work panicked or
    /// its runtime ended.
    pub async fn run<F>(&self, begin: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut running = self.join(begin);
        match running.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(value))) => Ok(value.clone()),
            Ok(Some(Err(error))) => Err(error.again()),
            Ok(None) | Err(_) => {
                let text = "the work ended without a result: it panicked, or its runtime ended";
                Err(Error::new(ErrorKind::Closed, text))
            }
        }
    }

    fn join<F>(&self, begin: impl FnOnce() -> F) -> watch::Receiver<Running<T>>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a result and without a sender, it panicked: it is begun anew.
        if let Some(running) = &*running
            && running.borrow().is_none()
            && running.has_changed().is_ok()
        {
            return running.clone();
        }
        let (done, receiver) = watch::channel(None);
        *running = Some(receiver.clone());
        let work = begin();
        tokio::spawn(async move {
            let result = work.await.map_err(Arc::new);
            done.send_replace(Some(result));
        });
        receiver
    }
}

impl<T> Default for SharedTask<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> fmt::Debug for SharedTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTask").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_not_the_work() {
        let (shared, begun) = (SharedTask::default(), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(10 * SECOND).await;
                Ok(number)
            }
        };
        for _ in 0..4 {
            assert!(timeout(2 * SECOND, shared.run(work)).await.is_err());
        }
        assert_eq!(shared.run(work).await.expect("it ends after 10 s"), 0);
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        // What ended is not handed to those who come later.
        assert_eq!(shared.run(work).await.expect("it ends"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_get_the_error() {
        let shared = SharedTask::<()>::default();
        let fail = || async {
            sleep(SECOND).await;
            Err(Error::new(ErrorKind::Denied, "no").with_source("the driver's"))
        };
        let (first, second) = tokio::join!(shared.run(fail), shared.run(fail));
        for error in [first.expect_err("it fails"), second.expect_err("it fails")] {
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Denied, "no"));
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_begun_anew() {
        let shared = SharedTask::default();
        let error = shared.run(|| async { panic!("on purpose") }).await;
        assert_eq!(error.map(|(): ()| ()).expect_err("it panicked").kind(), ErrorKind::Closed);
        shared.run(|| async { Ok(()) }).await.expect("the second works");
    }
}
