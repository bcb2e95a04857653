//! What a process of the scenario is and does: this program once more.

mod consumer;
mod publisher;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anybroker::{BoxError, Broker};
use anybroker_testkit::history::{Event, Writer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing_subscriber::filter::LevelFilter;

use crate::scenario::Part;

/// Tells this program, started once more, what to be.
pub(crate) const ROLE: &str = "ANYBROKER_CHAOS_ROLE";

/// How long after its input ended a process may live. Its parent waits for less.
const LONGEST_END: Duration = Duration::from_mins(2);

/// How long the close of a connection may take.
const LONGEST_CLOSE: Duration = Duration::from_secs(20);

/// A process of the scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    /// As the history names it.
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) folder: PathBuf,
    pub(crate) parts: Vec<Part>,
    pub(crate) work: Work,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// With so many loops for each subscription.
    Consume {
        loops: usize,
    },
    Publish {
        seed: u64,
        per_second: u32,
    },
}

/// Does what a role says until the input ends.
pub(crate) fn perform(role: &str) -> ExitCode {
    let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_ansi(false);
    subscriber.with_writer(std::io::stderr).init();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let done = runtime.worker_threads(2).enable_all().build().map_err(BoxError::from).and_then(
        |runtime| {
            let role: Role = serde_json::from_str(role)?;
            let notes = Arc::new(Writer::open(&role.folder, &role.name)?);
            notes.note_stalls();
            runtime.block_on(work(role, notes))
        },
    );
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ended by an error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(role: Role, notes: Arc<Writer>) -> Result<(), BoxError> {
    let mut end = end_of_input();
    let broker = tokio::select! {
        broker = anybroker::connect(&role.url) => broker?,
        // Told to end before the broker was there.
        _ = end.wait_for(|end| *end) => return Ok(()),
    };
    match role.work {
        Work::Consume { loops } => consumer::run(&broker, &role.parts, loops, &notes, end).await?,
        Work::Publish { seed, per_second } => {
            let load = publisher::Load { name: &role.name, parts: &role.parts, seed, per_second };
            publisher::run(&*broker, &load, &notes, end).await?;
        }
    }
    Ok(())
}

/// Closes the connection, and notes an error.
async fn close(broker: &dyn Broker, notes: &Writer) -> std::io::Result<()> {
    let error = match timeout(LONGEST_CLOSE, broker.close()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => text_of(&error),
        Err(_) => format!("it did not return in {LONGEST_CLOSE:?}"),
    };
    notes.note(&Event::Failed { doing: "close".to_owned(), error })
}

/// Turns true when the input ends, which is how a process is told to end, and how it learns that
/// its parent is gone.
fn end_of_input() -> watch::Receiver<bool> {
    let (end, ended) = watch::channel(false);
    std::thread::spawn(move || {
        // Whatever comes, or an error, is the end.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        end.send_replace(true);
        std::thread::sleep(LONGEST_END);
        std::process::exit(1);
    });
    ended
}

fn text_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
