use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anybroker_core::{Confirmation, ErrorKind, Outgoing, Producer, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use crate::folder::{Folder, failed, lock, refused, rename};
use crate::name::{FREE, Name};

/// What `connect` opens and `close` ends; a producer too.
///
/// All that it does with files it does in one task, in the order of the calls.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) folder: Arc<Folder>,
    jobs: mpsc::UnboundedSender<Job>,
    /// What its consumers have, by tag.
    held: Arc<Mutex<HashMap<u64, Held>>>,
}

type Job = Box<dyn FnOnce(&Folder) + Send>;

/// A message that a consumer has.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) consumer: u64,
    pub(crate) group: PathBuf,
    pub(crate) name: Name,
}

impl Held {
    /// Gives the message back: the attempt counts, since a handler may have run. If that fails, the
    /// lease ends.
    pub(crate) fn free(&self) -> io::Result<()> {
        let _lock = lock(&self.group)?;
        rename(&self.group, self.name, Name { due: 0, state: FREE, ..self.name })
    }
}

impl Connection {
    pub(crate) fn open(folder: Folder) -> Self {
        let (folder, (jobs, mut queue)) = (Arc::new(folder), mpsc::unbounded_channel::<Job>());
        let of_task = Arc::clone(&folder);
        tokio::spawn(async move {
            while let Some(job) = queue.recv().await {
                let folder = Arc::clone(&of_task);
                // A job that panics drops the sender of its answer.
                let _ = spawn_blocking(move || job(&folder)).await;
            }
        });
        Self { folder, jobs, held: Arc::default() }
    }

    /// Does something after all that was asked for before, whether or not it is polled.
    pub(crate) fn in_turn<T, W>(
        &self,
        operation: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T>> + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = move |folder: &Folder| drop(answer.send(work(folder)));
        // The task that receives lives as long as this sender.
        let _ = self.jobs.send(Box::new(job));
        async move {
            let panicked = |_| Err(refused(ErrorKind::Broker, "the task panicked"));
            answered.await.unwrap_or_else(panicked).map_err(|error| failed(operation, error))
        }
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn close(&self) -> Result<()> {
        let connection = self.clone();
        let close = move |folder: &Folder| {
            folder.closed.store(true, Ordering::Release);
            connection.held().drain().try_for_each(|(_, held)| held.free())
        };
        self.in_turn("close", close).await
    }
}

impl Producer for Connection {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        let publish = move |folder: &Folder| folder.publish(&outgoing);
        Confirmation::run(self.in_turn("publish", publish))
    }
}
