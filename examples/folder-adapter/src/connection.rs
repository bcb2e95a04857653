use std::sync::Arc;
use std::time::Duration;

use anybroker_core::Result;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use crate::error::{closed, error};
use crate::files::Files;
use crate::publish::{self, Send};

/// What `connect` opens and `close` ends; publishes too.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) files: Arc<Files>,
    pub(crate) longest_lease: Duration,
    pub(crate) sends: mpsc::UnboundedSender<Send>,
    /// Each task of the connection has a receiver, and drops it when it has ended.
    closing: watch::Sender<bool>,
}

impl Connection {
    pub(crate) fn open(files: Files, longest_lease: Duration) -> Arc<Self> {
        let files = Arc::new(files);
        let (sends, jobs) = mpsc::unbounded_channel();
        let (closing, closed) = watch::channel(false);
        tokio::spawn(publish::run(Arc::clone(&files), jobs, closed));
        Arc::new(Self { files, longest_lease, sends, closing })
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closing.borrow()
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Ends all tasks, and waits until they have stored what they were given.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        self.closing.closed().await;
    }

    /// Does something with files, where it may block.
    pub(crate) async fn with_files<T: std::marker::Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T> + std::marker::Send + 'static,
    ) -> Result<T> {
        if self.is_closed() {
            return Err(closed());
        }
        let files = Arc::clone(&self.files);
        let done = spawn_blocking(move || work(&files)).await;
        done.unwrap_or_else(|_| Err(error(anybroker_core::ErrorKind::Broker, "a task panicked")))
    }
}
