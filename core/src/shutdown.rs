use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::adapter::Background;

/// Resolves on Ctrl-C, and on Unix on SIGTERM: what a worker runs until.
///
/// A signal that comes while nobody waits for one ends the process at once, with the usual exit
/// code (130 after Ctrl-C, 143 after SIGTERM): so a second Ctrl-C does not wait for the drain, and
/// a handler that blocks the runtime's only thread does not keep the process alive. Messages that
/// were not settled come back.
///
/// Where no handler for signals can be installed it never resolves, and a signal ends the process
/// as usual.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send {
    ShutdownSignal { turn: None }
}

/// Who waits for the next signal.
#[derive(Default)]
struct Waiting {
    /// How many signals have come.
    signals: u64,
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

/// Those who wait. A task in the background looks for signals, for the whole process: nothing else
/// could end the process while a handler blocks the only thread.
fn waiting() -> &'static Arc<Mutex<Waiting>> {
    static WAITING: OnceLock<Arc<Mutex<Waiting>>> = OnceLock::new();
    WAITING.get_or_init(|| {
        let waiting = Arc::<Mutex<Waiting>>::default();
        // Installed before this returns: a signal that comes right after must find it.
        listen(&waiting);
        waiting
    })
}

struct ShutdownSignal {
    /// The number of this waiter, and how many signals had come before it.
    turn: Option<(u64, u64)>,
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = waiting().lock().unwrap_or_else(PoisonError::into_inner);
        let (number, before) = *self.turn.get_or_insert_with(|| {
            waiting.next += 1;
            (waiting.next, waiting.signals)
        });
        if waiting.signals > before {
            return Poll::Ready(());
        }
        waiting.wakers.retain(|(other, _)| *other != number);
        waiting.wakers.push((number, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for ShutdownSignal {
    fn drop(&mut self) {
        if let Some((number, _)) = self.turn {
            let mut waiting = waiting().lock().unwrap_or_else(PoisonError::into_inner);
            waiting.wakers.retain(|(other, _)| *other != number);
        }
    }
}

/// Wakes those who wait, or ends the process where nobody does.
fn came(waiting: &Mutex<Waiting>, name: &'static str, code: i32) {
    let wakers = {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.signals += 1;
        std::mem::take(&mut waiting.wakers)
    };
    if wakers.is_empty() {
        tracing::warn!(signal = name, "nobody waits for this signal any more; ending at once");
        std::process::exit(code);
    }
    for (_, waker) in wakers {
        waker.wake();
    }
}

#[cfg(unix)]
fn listen(waiting: &Arc<Mutex<Waiting>>) {
    use tokio::signal::unix::{SignalKind, signal};

    let handle = Background::handle();
    let _entered = handle.enter();
    let kinds =
        [(SignalKind::interrupt(), "SIGINT", 130), (SignalKind::terminate(), "SIGTERM", 143)];
    for (kind, name, code) in kinds {
        match signal(kind) {
            Ok(mut signals) => {
                let waiting = Arc::clone(waiting);
                Background::spawn(async move {
                    while signals.recv().await.is_some() {
                        came(&waiting, name, code);
                    }
                });
            }
            Err(error) => tracing::warn!(%error, signal = name, "the signal cannot be awaited"),
        }
    }
}

#[cfg(not(unix))]
fn listen(waiting: &Arc<Mutex<Waiting>>) {
    let waiting = Arc::clone(waiting);
    Background::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            came(&waiting, "Ctrl-C", 130);
        }
    });
}
