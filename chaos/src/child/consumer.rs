use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anybroker::{
    Backoff, BoxError, Broker, DeadLetterLayer, Message, Outcome, RetryLayer, ServiceBuilder,
    Worker,
};
use anybroker_testkit::history::{Event, RunEnd, Writer};
use tokio::sync::watch;
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};

use super::{close, text_of};
use crate::scenario::{ATTEMPTS, BACKOFF, DRAIN, Part, Task};

/// How many handlers of a subscription run at once.
const AT_ONCE: usize = 8;

pub(super) async fn run(
    broker: &Arc<dyn Broker>,
    parts: &[Part],
    loops: usize,
    notes: &Arc<Writer>,
    end: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    loop {
        // A start that is told to end has as long as a drain.
        let start = worker(broker, parts, loops, notes).start();
        let (told, stop) = (end.clone(), end.clone());
        let ended = async move {
            told_to_end(told).await;
            sleep(DRAIN).await;
        };
        let started = tokio::select! {
            started = start => started,
            () = ended => break,
        };
        match started {
            Ok(running) => {
                let report = running.run_until(told_to_end(stop)).await?;
                eprintln!("{report}");
                break;
            }
            Err(error) => {
                let error = text_of(&error);
                notes.note(&Event::Failed { doing: "start".to_owned(), error })?;
                // As an application that is restarted.
                sleep(Duration::from_millis(500)).await;
            }
        }
        if *end.borrow() {
            break;
        }
    }
    Ok(close(&**broker, notes).await?)
}

async fn told_to_end(mut end: watch::Receiver<bool>) {
    // An error means that nobody can tell it any more.
    let _ = end.wait_for(|end| *end).await;
}

fn worker(broker: &Arc<dyn Broker>, parts: &[Part], loops: usize, notes: &Arc<Writer>) -> Worker {
    let mut worker = Worker::new(broker.clone()).concurrency(AT_ONCE).loops(loops);
    worker = worker.drain_timeout(DRAIN);
    for subscription in parts.iter().flat_map(|part| part.subscriptions()) {
        let layered = ServiceBuilder::new()
            .layer(DeadLetterLayer::new())
            .layer(RetryLayer::new(Backoff::fixed(BACKOFF)).max_attempts(ATTEMPTS))
            .service_fn(handle);
        let notes = notes.clone();
        // Outside of all layers, to note what the worker is told.
        let service = service_fn(move |message: Message| {
            let (layered, run) = (layered.clone(), Run::start(&notes, &message));
            write_down(layered.oneshot(message), run)
        });
        worker = worker.subscribe(subscription, service);
    }
    worker
}

async fn handle(message: Message) -> Result<Outcome, BoxError> {
    match Task::of_id(&message.envelope().id) {
        Some(task) => task.perform(message.attempt()).await,
        None => Ok(Outcome::Ack),
    }
}

async fn write_down(
    handled: impl Future<Output = Result<Outcome, BoxError>>,
    run: std::io::Result<Run>,
) -> Result<Outcome, BoxError> {
    let mut run = run.map_err(BoxError::from)?;
    let result = handled.await;
    run.end(&result).map_err(BoxError::from)?;
    result
}

/// A run of a handler, from its start to its end.
struct Run {
    notes: Arc<Writer>,
    id: String,
    group: String,
    number: u64,
    has_ended: bool,
}

impl Run {
    fn start(notes: &Arc<Writer>, message: &Message) -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (id, group) = (message.envelope().id.clone(), message.group().to_owned());
        let attempt = message.attempt();
        notes.note(&Event::Started {
            id: id.clone(),
            group: group.clone(),
            attempt,
            run: number,
        })?;
        Ok(Self { notes: notes.clone(), id, group, number, has_ended: false })
    }

    fn end(&mut self, result: &Result<Outcome, BoxError>) -> std::io::Result<()> {
        let millis = |wait: &Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let end = match result {
            Ok(Outcome::Ack) => RunEnd::Ack,
            Ok(Outcome::Retry { after }) => RunEnd::Retry(millis(after)),
            Ok(Outcome::Release { after }) => RunEnd::Release(millis(after)),
            Ok(Outcome::DeadLetter { reason }) => RunEnd::DeadLetter(reason.code().to_owned()),
            Err(error) => RunEnd::Error(error.to_string()),
        };
        self.has_ended = true;
        self.note(end)
    }

    fn note(&self, end: RunEnd) -> std::io::Result<()> {
        let (id, group) = (self.id.clone(), self.group.clone());
        self.notes.note(&Event::Ended { id, group, run: self.number, end })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.has_ended {
            // The end of the process says the same, a little later.
            let _ = self.note(RunEnd::Dropped);
        }
    }
}
