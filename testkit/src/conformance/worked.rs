use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anybroker_core::{
    BoxError, Message, Outcome, Report, Result, RunningWorker, Subscription, Worker,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tower::{Service, service_fn};

use super::case::Checked;
use super::lab::{Lab, PATIENCE};

/// A worker at work.
pub(super) struct Working {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Report>>,
}

/// What a handler saw.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    pub(super) id: String,
    pub(super) key: Option<String>,
    pub(super) attempt: u32,
    pub(super) at: Instant,
}

/// Where handlers note what they saw, and cases read it.
pub(super) struct Sightings(mpsc::UnboundedReceiver<Sight>);

impl Working {
    pub(super) async fn start(worker: Worker) -> Checked<Self> {
        Ok(Self::run(worker.start().await?))
    }

    /// A worker with one subscription on the connection of the case.
    pub(super) async fn on<S>(lab: &Lab, subscription: &Subscription, service: S) -> Checked<Self>
    where
        S: Service<Message, Response = Outcome, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let worker = Worker::new(lab.broker().clone()).concurrency(16);
        Self::start(worker.subscribe(subscription.clone(), service)).await
    }

    fn run(running: RunningWorker) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(running.run_until(stopped)) }
    }

    /// Lets it finish what it runs, and stop.
    pub(super) async fn drain(self) -> Checked<Report> {
        drop(self.stop);
        Ok(timeout(2 * PATIENCE, self.task)
            .await
            .map_err(|_elapsed| "the worker does not end")???)
    }

    /// Waits until it ends by itself.
    pub(super) async fn ended(self) -> Checked<Result<Report>> {
        let ended = timeout(PATIENCE, self.task).await;
        Ok(ended.map_err(|_elapsed| "the worker goes on")??)
    }

    /// Stops it in the middle of everything, as a killed process does: first its connection goes,
    /// so that nothing can be given back, then what ran on it.
    pub(super) async fn crash(self, lab: &Lab) -> Checked {
        lab.broker().close().await?;
        self.task.abort();
        // It was cancelled, which is no news.
        let _ = self.task.await;
        Ok(())
    }
}

impl Sightings {
    /// A handler that notes what it sees, then answers what `answer` does.
    pub(super) fn of<F, A>(
        answer: F,
    ) -> (
        Self,
        impl Service<Message, Response = Outcome, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
    )
    where
        F: Fn(Message) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Outcome, BoxError>> + Send,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let service = service_fn(move |message: Message| {
            // A case that has seen enough reads no more.
            let _ = sender.send(Sight::of(&message));
            answer(message)
        });
        (Self(receiver), service)
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Checked<Sight> {
        self.within(PATIENCE).await?.ok_or_else(|| format!("nothing within {PATIENCE:?}").into())
    }

    /// The next one, if any comes within this time.
    pub(super) async fn within(&mut self, time: Duration) -> Checked<Option<Sight>> {
        match timeout(time, self.0.recv()).await {
            Err(_elapsed) => Ok(None),
            Ok(Some(sight)) => Ok(Some(sight)),
            Ok(None) => Err("every handler is gone".into()),
        }
    }

    /// The next ones, this many.
    pub(super) async fn take(&mut self, count: usize) -> Checked<Vec<Sight>> {
        let mut sights = Vec::with_capacity(count);
        while sights.len() < count {
            let sight = self.within(PATIENCE).await?;
            sights.push(sight.ok_or_else(|| format!("{} of {count} were seen", sights.len()))?);
        }
        Ok(sights)
    }

    /// Proves that no handler sees anything for a while.
    pub(super) async fn quiet(&mut self, time: Duration) -> Checked {
        match self.within(time).await? {
            None => Ok(()),
            Some(sight) => Err(format!("a handler should have seen nothing, but {sight:?}").into()),
        }
    }

    /// All that were noted, in their order.
    pub(super) fn rest(mut self) -> Vec<Sight> {
        let mut sights = Vec::new();
        while let Ok(sight) = self.0.try_recv() {
            sights.push(sight);
        }
        sights
    }
}

impl Sight {
    fn of(message: &Message) -> Self {
        let envelope = message.envelope();
        Self {
            id: envelope.id.clone(),
            key: envelope.key.clone(),
            attempt: message.attempt(),
            at: Instant::now(),
        }
    }
}

/// Ids as they were seen, by key.
pub(super) fn by_key(sights: &[Sight]) -> HashMap<&str, Vec<&str>> {
    let mut keys: HashMap<&str, Vec<&str>> = HashMap::new();
    for sight in sights {
        keys.entry(sight.key.as_deref().unwrap_or_default()).or_default().push(&sight.id);
    }
    keys
}

/// Acknowledges everything.
pub(super) async fn acknowledge(_message: Message) -> Result<Outcome, BoxError> {
    Ok(Outcome::Ack)
}
