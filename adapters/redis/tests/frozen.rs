//! Processes that stand still for longer than their lease, and then go on as if nothing had been.

mod support;

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anybroker_core::{Broker, Outcome, Queue, Subscription};
use support::{ack, connect, message, receive, send, servers, try_receive, unique};

const SECOND: Duration = Duration::from_secs(1);

/// Names server and queue to a process that was started to stand still.
const FROZEN: [&str; 2] = ["ANYBROKER_TEST_FROZEN_URL", "ANYBROKER_TEST_FROZEN_QUEUE"];

/// A process with one consumer, which stands still from its first delivery until it is told to go
/// on; then it settles that, and receives until nothing more comes.
struct Frozen {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Frozen {
    /// Runs the test of this name once more, which does what [`stand_still`] does.
    fn start(test: &str, url: &str, queue: &Queue) -> Self {
        let queue = Subscription::queue(queue.clone()).destination().name().to_owned();
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--nocapture"])
            .envs([(FROZEN[0], url), (FROZEN[1], &queue)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let says = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        Self { child, says }
    }

    /// What follows the word in the next line that begins with it.
    fn says(&mut self, word: &str) -> String {
        let lines = self.says.by_ref().map_while(Result::ok);
        let mut found = lines.filter_map(|line| line.strip_prefix(word).map(str::to_owned));
        found.next().unwrap_or_else(|| panic!("it ended before it said {word:?}"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(sent.success(), "{signal}");
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does that stands still, if this is it.
async fn stand_still(ordered: bool) -> bool {
    let [Ok(url), Ok(queue)] = FROZEN.map(std::env::var) else { return false };
    let queue = if ordered { Queue::new(queue).ordered() } else { Queue::new(queue) };
    let say = |text: String| {
        let mut out = std::io::stdout();
        writeln!(out, "\n{text}").and_then(|()| out.flush()).expect("somebody listens");
    };
    let broker = connect(&url).await;
    let subscription = Subscription::queue(queue).lease(SECOND);
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let delivery = receive(&mut consumer).await;
    say(format!("holds {}", delivery.envelope().id));
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    told.await.expect("no panic").expect("it is told to go on");
    let error = delivery.settle(Outcome::Ack).await.err().map(|error| error.kind());
    say(format!("settled {error:?}"));
    let mut more = Vec::new();
    while let Some(delivery) = try_receive(&mut consumer, 2 * SECOND).await {
        more.push(delivery.envelope().id.clone());
        ack(delivery).await;
    }
    broker.close().await.expect("a close");
    say(format!("more {more:?}"));
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_consumer_settles_nothing_that_others_have_taken_over() {
    if stand_still(false).await {
        return;
    }
    let test = "a_frozen_consumer_settles_nothing_that_others_have_taken_over";
    for url in servers() {
        freeze(test, &url, Queue::new(unique("frozen"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_of_an_ordered_partition_lets_nothing_pass() {
    if stand_still(true).await {
        return;
    }
    let test = "a_frozen_owner_of_an_ordered_partition_lets_nothing_pass";
    for url in servers() {
        freeze(test, &url, Queue::new(unique("frozen")).ordered()).await;
    }
}

async fn freeze(test: &str, url: &str, queue: Queue) {
    let subscription = Subscription::queue(queue.clone()).lease(SECOND);
    let broker = connect(url).await;
    let ids: Vec<_> = (0..5).map(|number| format!("m{number}")).collect();
    for id in &ids {
        send(&broker, queue.clone(), message(id).with_key("k")).await;
    }
    let mut frozen = Frozen::start(test, url, &queue);
    let frozen = tokio::task::spawn_blocking(move || {
        assert_eq!(frozen.says("holds "), "m0");
        frozen.signal("-STOP");
        frozen
    });
    let mut frozen = frozen.await.expect("no panic");
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    let mut taken = Vec::new();
    for _ in &ids {
        taken.push(receive(&mut consumer).await);
    }
    let found: Vec<_> = taken.iter().map(|delivery| delivery.envelope().id.clone()).collect();
    assert_eq!(found, ids, "{url}");
    assert_eq!(taken[0].attempt(), 2, "{url}");
    frozen.signal("-CONT");
    let frozen = tokio::task::spawn_blocking(move || {
        let mut input = frozen.child.stdin.take().expect("its input is piped");
        writeln!(input, "go on").expect("it is there");
        assert_eq!(frozen.says("settled "), "Some(StaleDelivery)");
        frozen
    });
    let mut frozen = frozen.await.expect("no panic");
    for delivery in taken {
        ack(delivery).await;
    }
    let more = tokio::task::spawn_blocking(move || frozen.says("more "));
    assert_eq!(more.await.expect("no panic"), "[]", "{url}: it was all in other hands");
    assert!(try_receive(&mut consumer, SECOND).await.is_none(), "{url}");
    broker.close().await.expect("a close");
}
