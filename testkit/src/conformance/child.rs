use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Destination, Message, Outcome, Outgoing, Subscription, Worker,
};
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tower::service_fn;

use super::case::Checked;
use super::lab::message;
use super::target::Target;
use crate::Child;
use crate::history::Ledger;

/// Tells this program, started once more, what to be.
const PART: &str = "ANYBROKER_TEST_CHILD";

/// This program once more, in a process of its own that can be killed.
impl Child {
    /// Starts a process that handles the group's messages, 16 at once, as their ids say (see
    /// `handle`). Its ledger tells what [`Handling`] reads.
    pub(in crate::conformance) fn consumer(
        target: &str,
        of: &Subscription,
        ledger: &Path,
    ) -> Checked<Self> {
        Self::start(target, of, ledger, 1, None)
    }

    /// The same with so many loops.
    pub(in crate::conformance) fn with_loops(
        target: &str,
        of: &Subscription,
        ledger: &Path,
        loops: u64,
    ) -> Checked<Self> {
        Self::start(target, of, ledger, loops, None)
    }

    /// Starts a process that publishes `<run>.0`, `<run>.1`, … to the group's queue or topic: each
    /// id is in the ledger once it is confirmed.
    pub(in crate::conformance) fn publisher(
        target: &str,
        to: &Subscription,
        ledger: &Path,
        run: &str,
    ) -> Checked<Self> {
        Self::start(target, to, ledger, 1, Some(run))
    }

    fn start(
        target: &str,
        of: &Subscription,
        ledger: &Path,
        loops: u64,
        run: Option<&str>,
    ) -> Checked<Self> {
        let destination = of.destination();
        let group = destination.is_topic().then(|| of.group_name());
        let part = json!({
            "target": target, "name": destination.name(), "group": group, "ledger": ledger, "run": run,
            "limit": of.delivery_limit(), "lease": of.lease_time().as_secs(),
            "loops": loops,
        });
        let mut command = Command::new(std::env::current_exe()?);
        let command = command.env(PART, part.to_string()).stdout(Stdio::null());
        Ok(Self::spawn(command)?)
    }

    /// Fails if it has ended by itself.
    pub(in crate::conformance) fn check(&mut self) -> Checked {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(format!("the child process ended by itself: {status}").into()),
        }
    }
}

/// A folder for ledgers, gone at the end.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(queue: &str) -> Checked<Self> {
        let path = std::env::temp_dir().join(format!("anybroker-{queue}"));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// A file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the handlers of child processes have done, as their ledger tells it.
#[derive(Debug, Default)]
pub(super) struct Handling {
    /// Id and attempt of each start of a handler.
    pub(super) starts: Vec<(String, u32)>,
    /// The id of each message that was about to be acknowledged.
    pub(super) ends: Vec<String>,
}

impl Handling {
    pub(super) fn read(ledger: &Path) -> Checked<Self> {
        let mut handling = Self::default();
        for line in Ledger::read(ledger)? {
            let (id, what) = line.split_once(' ').ok_or_else(|| format!("no line: {line}"))?;
            match what {
                END => handling.ends.push(id.to_owned()),
                attempt => handling.starts.push((id.to_owned(), attempt.parse()?)),
            }
        }
        Ok(handling)
    }
}

/// Stands in the ledger where the attempt does when a handler starts.
const END: &str = "end";

/// Does what a [`Child`] is for, if this process is one.
pub(super) fn take_part(targets: &[Target]) -> Option<ExitCode> {
    let part = std::env::var(PART).ok()?;
    match perform(&part, targets) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("child process: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn perform(part: &str, targets: &[Target]) -> Checked {
    std::thread::spawn(|| {
        // Whatever comes, or an error, is the end of the parent.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        process::exit(1);
    });
    let part: Value = serde_json::from_str(part)?;
    let text = |name: &str| part[name].as_str().map(str::to_owned);
    let (target, name) = text("target").zip(text("name")).ok_or("no target or name")?;
    let subscription = match text("group") {
        Some(group) => Subscription::topic(name).group(group),
        None => Subscription::queue(name),
    };
    let subscription = match part["limit"].as_u64() {
        Some(limit) => subscription.max_deliveries(u32::try_from(limit)?),
        None => subscription.unlimited_deliveries(),
    };
    // Where deliveries are leased, the next process has a killed one's when its leases are over.
    let lease = Duration::from_secs(part["lease"].as_u64().ok_or("no lease")?);
    let subscription = subscription.lease(lease);
    let target = targets.iter().find(|one| one.name == target).ok_or("an unknown target")?;
    let ledger = Ledger::open(&PathBuf::from(text("ledger").ok_or("no ledger")?))?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let broker = (target.connect)().await?;
        match text("run") {
            Some(run) => publish(&*broker, subscription.destination(), &ledger, &run).await,
            None => {
                let loops = part["loops"].as_u64().ok_or("no loops")?;
                consume(broker, subscription, ledger, usize::try_from(loops)?).await
            }
        }
    })
}

async fn consume(
    broker: Arc<dyn Broker>,
    of: Subscription,
    ledger: Ledger,
    loops: usize,
) -> Checked {
    let ledger = Arc::new(ledger);
    let service = service_fn(move |message: Message| handle(message, ledger.clone()));
    let worker = Worker::new(broker).concurrency(16).loops(loops).subscribe(of, service);
    worker.start().await?.run_until(std::future::pending::<()>()).await?;
    Ok(())
}

/// Notes the start, does what the id says up to its number, and notes the end before it
/// acknowledges.
async fn handle(message: Message, ledger: Arc<Ledger>) -> Result<Outcome, BoxError> {
    let id = message.envelope().id.clone();
    let note = |line: String| {
        let ledger = ledger.clone();
        spawn_blocking(move || ledger.append([&*line]))
    };
    note(format!("{id} {}", message.attempt())).await??;
    // Long enough that some are cut off in between.
    sleep(Duration::from_millis(20)).await;
    match id.trim_end_matches(|character: char| character.is_ascii_digit()) {
        "hang" => std::future::pending().await,
        "abort" => process::abort(),
        "slow" => sleep(Duration::from_millis(300)).await,
        "dead" => return Ok(Outcome::dead_letter("test", "as its id says")),
        // In the worker.
        "soon" if message.attempt() == 1 => {
            return Ok(Outcome::Retry { after: Duration::from_millis(500) });
        }
        "wait" if message.attempt() == 1 => {
            return Ok(Outcome::Retry { after: Duration::from_secs(4) });
        }
        // Longer than the worker waits, so that the broker has to.
        "later" if message.attempt() == 1 => {
            return Ok(Outcome::Retry { after: Duration::from_secs(6) });
        }
        _ => {}
    }
    note(format!("{id} {END}")).await??;
    Ok(Outcome::Ack)
}

async fn publish(broker: &dyn Broker, to: &Destination, ledger: &Ledger, run: &str) -> Checked {
    const AT_ONCE: usize = 50;
    let producer = broker.producer();
    for burst in 0.. {
        let sends: Vec<_> = (burst * AT_ONCE..(burst + 1) * AT_ONCE)
            .map(|number| {
                let id = format!("{run}.{number}");
                (producer.send(Outgoing::new(to.clone(), message(&id))), id)
            })
            .collect();
        for (send, id) in sends {
            // What fails is not in the ledger, and need not arrive.
            if send.await.is_ok() {
                ledger.append([&*id])?;
            }
        }
    }
    Ok(())
}
