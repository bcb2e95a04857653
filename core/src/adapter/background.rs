use std::future::{Future, pending};
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};

/// A thread with a runtime of its own, for what must go on while handlers block the application's
/// threads: an application may have one thread, and a handler may block it for minutes.
///
/// The thread is started when it is first needed, and ends with the process. All workers share it:
/// nothing that runs there may block. Its clock cannot be paused.
#[derive(Debug)]
pub(crate) struct Background;

impl Background {
    /// Runs a future to its end on the background thread.
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
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
                "no background thread could be started; a handler that blocks its thread goes unseen"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn what_was_spawned_goes_on_while_the_thread_of_the_caller_is_blocked() {
        let (done, finished) = mpsc::channel();
        Background::spawn(async move {
            sleep(Duration::from_millis(1)).await;
            let _ = done.send(std::thread::current().name().map(str::to_owned));
        });
        // This blocks the only thread of the test's runtime.
        let by = finished.recv_timeout(Duration::from_mins(1)).unwrap();
        assert_eq!(by.as_deref(), Some("anybroker"));
    }
}
