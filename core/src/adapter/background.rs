use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};

/// A thread with a runtime of its own, for what must go on while handlers block the application's
/// threads: connections, renewals of leases, and the settlements that wait with them.
///
/// An application may have one thread, and a handler may block it for minutes. What runs there
/// stands still meanwhile; a lease that is renewed there runs out, and its message is handled once
/// more by somebody else. So an adapter whose deliveries are leased, or whose connection is lost
/// when it is silent, opens its connections and starts its tasks in a [`scope`](Self::scope).
///
/// The thread is started when it is first needed, and ends with the process. All brokers share it:
/// nothing that runs there may block.
///
/// Its clock cannot be paused. Whatever a test with a paused clock looks at stays on the runtime of
/// that test.
#[derive(Debug)]
pub struct Background;

impl Background {
    /// Runs a future where it is awaited, but as if it was awaited in the background: the tasks that
    /// it spawns, the connections that it opens and its timers are served by the background thread.
    pub async fn scope<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let handle = Self::handle();
        poll_fn(|cx| {
            let _entered = handle.enter();
            future.as_mut().poll(cx)
        })
        .await
    }

    /// As [`scope`](Self::scope), for what is not awaited: runs it where it is called, and the tasks
    /// that it spawns in the background.
    pub fn enter<T>(work: impl FnOnce() -> T) -> T {
        let handle = Self::handle();
        let _entered = handle.enter();
        work()
    }

    /// Runs a future to its end on the background thread.
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        Self::handle().spawn(future);
    }

    /// The background runtime; that of the caller where no thread could be started.
    pub(crate) fn handle() -> Handle {
        static HANDLE: OnceLock<Option<Handle>> = OnceLock::new();
        HANDLE.get_or_init(start).clone().unwrap_or_else(Handle::current)
    }
}

fn start() -> Option<Handle> {
    let started = Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("anybroker".to_owned());
        thread.spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(handle)
    });
    match started {
        Ok(handle) => Some(handle),
        Err(error) => {
            tracing::warn!(
                %error,
                "no background thread could be started; a handler that blocks its thread may cost leases"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_started_in_a_scope_goes_on_while_the_thread_is_blocked() {
        let (done, mut finished) = oneshot::channel();
        Background::scope(async move {
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                done.send(std::thread::current().name().map(str::to_owned))
            });
        })
        .await;
        let by = loop {
            // Nothing is awaited here, so that this thread runs no task.
            match finished.try_recv() {
                Ok(by) => break by,
                Err(oneshot::error::TryRecvError::Empty) => std::thread::yield_now(),
                Err(closed) => panic!("the task was dropped: {closed}"),
            }
        };
        assert_eq!(by.as_deref(), Some("anybroker"));
    }
}
