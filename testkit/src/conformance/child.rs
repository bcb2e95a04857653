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
use tower::service_fn;

use super::case::Checked;
use super::lab::message;
use super::target::Target;
use crate::ledger::Ledger;

/// Tells this program, started once more, what to be.
const PART: &str = "ANYBROKER_TEST_CHILD";

/// This program once more, in a process of its own that can be killed.
#[derive(Debug)]
pub(super) struct Child(process::Child);

impl Child {
    /// Starts a process that handles the group's messages: each id is in the ledger before its
    /// message is acknowledged.
    pub(super) fn consumer(target: &str, of: &Subscription, ledger: &Path) -> Checked<Self> {
        Self::start(target, of, ledger, None)
    }

    /// Starts a process that publishes `<run>.0`, `<run>.1`, … to the group's queue or topic: each id is in the
    /// ledger once it is confirmed.
    pub(super) fn publisher(
        target: &str,
        to: &Subscription,
        ledger: &Path,
        run: &str,
    ) -> Checked<Self> {
        Self::start(target, to, ledger, Some(run))
    }

    fn start(target: &str, of: &Subscription, ledger: &Path, run: Option<&str>) -> Checked<Self> {
        let destination = of.destination();
        let group = destination.is_topic().then(|| of.group_name());
        let part = json!({
            "target": target, "name": destination.name(), "group": group, "ledger": ledger, "run": run,
        });
        let mut command = Command::new(std::env::current_exe()?);
        // It ends with its input, and so with this process, whatever ends it.
        let command = command.env(PART, part.to_string()).stdin(Stdio::piped());
        Ok(Self(command.stdout(Stdio::null()).spawn()?))
    }

    /// Fails if it has ended by itself.
    pub(super) fn check(&mut self) -> Checked {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the child process ended by itself: {status}").into()),
        }
    }

    /// Ends it at once (`kill -9`).
    pub(super) fn kill(&mut self) -> Checked {
        self.check()?;
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    let target = targets.iter().find(|one| one.name == target).ok_or("an unknown target")?;
    let ledger = Ledger::open(&PathBuf::from(text("ledger").ok_or("no ledger")?))?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let broker = (target.connect)().await?;
        match text("run") {
            Some(run) => publish(&*broker, subscription.destination(), &ledger, &run).await,
            None => consume(broker, subscription, ledger).await,
        }
    })
}

async fn consume(broker: Arc<dyn Broker>, of: Subscription, ledger: Ledger) -> Checked {
    let ledger = Arc::new(ledger);
    let service = service_fn(move |message: Message| {
        let ledger = ledger.clone();
        async move {
            let id = message.envelope().id.clone();
            spawn_blocking(move || ledger.append([&*id])).await??;
            Ok::<_, BoxError>(Outcome::Ack)
        }
    });
    // Where deliveries are leased, the next process has a killed one's when its leases are over.
    let subscription = of.unlimited_deliveries().lease(Duration::from_secs(3));
    let worker = Worker::new(broker).concurrency(16).subscribe(subscription, service);
    worker.start().await?.run_until(std::future::pending::<()>()).await?;
    Ok(())
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
