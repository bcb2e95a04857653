//! How a process ends while a handler blocks its thread. Each in real time: such a handler does not
//! let the clock of its runtime move.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anybroker_core::{
    BoxError, Broker, Envelope, Message, Outcome, Outgoing, Queue, RunningWorker, Subscription,
    Worker, shutdown_signal,
};
use tower::service_fn;

/// Which signal the child process is sent; set in the child only.
const CHILD: &str = "ANYBROKER_TEST_ENDING_CHILD";

const BLOCKED: Duration = Duration::from_mins(1);

/// Starts a worker whose handler runs `block` on its thread, and publishes a message for it.
async fn blocked_by(
    worker: impl FnOnce(Worker) -> Worker,
    block: impl Fn() + Clone + Send + Sync + 'static,
) -> RunningWorker {
    let broker: Arc<dyn Broker> =
        anybroker_memory::connect("memory://".parse().unwrap()).await.unwrap();
    let handler = service_fn(move |_: Message| {
        let block = block.clone();
        async move {
            block();
            Ok::<_, BoxError>(Outcome::Ack)
        }
    });
    let mounted =
        worker(Worker::new(broker.clone())).subscribe(Subscription::queue("work"), handler);
    let running = mounted.start().await.unwrap();
    let sent = Outgoing::new(Queue::new("work"), Envelope::new("work", "{}"));
    broker.producer().send(sent).await.unwrap();
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_leaves_a_handler_that_blocks_its_thread_behind() {
    let (begun, begins) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (begun, released) = (begun, Arc::new(std::sync::Mutex::new(released)));
    let running = blocked_by(
        |worker| worker.drain_timeout(Duration::from_millis(100)),
        move || {
            begun.send(()).unwrap();
            let _ = released.lock().unwrap().recv_timeout(BLOCKED);
        },
    )
    .await;
    let stop = async { tokio::task::spawn_blocking(move || begins.recv()).await };
    let begun = Instant::now();
    let ended = tokio::spawn(running.run_until(stop)).await.unwrap();
    let took = begun.elapsed();
    // Before it can fail, or the runtime waits for the thread.
    drop(release);
    let report = ended.unwrap();
    assert!(took < BLOCKED / 3, "the drain took {took:?}");
    assert_eq!(report.handled, 0, "{report}");
}

#[test]
fn a_second_signal_ends_a_process_whose_only_thread_is_blocked() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let name = "a_second_signal_ends_a_process_whose_only_thread_is_blocked";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, signal)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let blocks = lines.map_while(Result::ok).any(|line| line.ends_with("the handler blocks"));
        assert!(blocks, "the child ended without running its handler");
        kill(&child, signal);
        // The first one begins the drain, which the handler holds up.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(child.try_wait().unwrap(), None, "the first SIG{signal} ended the process");
        kill(&child, signal);
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > BLOCKED / 2 {
                child.kill().unwrap();
                panic!("the second SIG{signal} did not end the process");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((status.code(), status.signal()), (Some(code), None));
    }
}

fn kill(child: &Child, signal: &str) {
    let status =
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// A process of one thread, which its handler blocks.
fn child() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let block = || {
            let mut out = std::io::stdout();
            writeln!(out, "the handler blocks").unwrap();
            out.flush().unwrap();
            std::thread::sleep(BLOCKED * 2);
        };
        let running = blocked_by(|worker| worker, block).await;
        running.run_until(shutdown_signal()).await.unwrap();
    });
}
