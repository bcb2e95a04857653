//! Streams, groups and consumers are deleted, made again or moved back, under a running and under a
//! stopped worker: nothing that is published afterwards is skipped.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Destination, Message, Outcome, Outgoing, Queue, Report, Start, Subscription,
    Topic, Worker,
};
use anybroker_redis::RedisBroker;
use anybroker_redis::redis::{Cmd, cmd};
use anybroker_testkit::brokers::{Redis, RedisVersion, Server};
use support::{ack, connect, message, receive, run, send, servers, unique};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;

const PATIENCE: Duration = Duration::from_mins(1);

/// A destination that is handled, and how often each message was.
#[derive(Clone)]
struct Handled {
    destination: Destination,
    subscription: Subscription,
    runs: Arc<Mutex<BTreeMap<String, u32>>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anybroker_core::Result<Report>>,
}

impl Handled {
    fn new(kind: &str, name: String) -> Self {
        let destination: Destination = match kind {
            "queue" => Queue::new(name).into(),
            "ordered" => Queue::new(name).ordered().partitions(2).into(),
            _ => Topic::new(name).into(),
        };
        let subscription = match kind {
            "topic" => Subscription::topic(destination.name().to_owned()).group("g"),
            "ordered" => Subscription::queue(
                Queue::new(destination.name().to_owned()).ordered().partitions(2),
            ),
            _ => Subscription::queue(destination.name().to_owned()),
        };
        Self { destination, subscription, runs: Arc::default() }
    }

    fn streams(&self) -> Vec<String> {
        let name = self.destination.name();
        if self.subscription.is_ordered() {
            (0..2).map(|partition| format!("{{{name}}}--p{partition}")).collect()
        } else {
            vec![name.to_owned()]
        }
    }

    async fn start(&self, broker: &Arc<RedisBroker>) -> Running {
        let runs = Arc::clone(&self.runs);
        let handler = service_fn(move |message: Message| {
            let runs = Arc::clone(&runs);
            async move {
                let id = message.envelope().id.clone();
                *runs.lock().expect("no panic").entry(id).or_default() += 1;
                Ok::<_, BoxError>(Outcome::Ack)
            }
        });
        let worker = Worker::new(Arc::clone(broker) as Arc<dyn Broker>)
            .subscribe(self.subscription.clone(), handler)
            .concurrency(4)
            .start()
            .await
            .expect("a worker");
        let (stop, stopped) = oneshot::channel::<()>();
        Running { stop, ended: tokio::spawn(worker.run_until(stopped)) }
    }

    async fn publish(&self, broker: &RedisBroker, ids: std::ops::Range<u32>) {
        let sends: Vec<_> = ids
            .map(|id| {
                let envelope = message(id.to_string()).with_key((id % 5).to_string());
                broker.producer().send(Outgoing::new(self.destination.clone(), envelope))
            })
            .collect();
        for sent in sends {
            timeout(PATIENCE, sent).await.expect("soon").expect("a confirmed publish");
        }
    }

    /// Waits until each of these was handled, and answers how often.
    async fn handled(&self, what: &str, ids: std::ops::Range<u32>) -> Vec<u32> {
        let end = Instant::now() + PATIENCE;
        loop {
            let runs = self.runs.lock().expect("no panic").clone();
            let counts: Vec<_> = ids
                .clone()
                .map(|id| runs.get(&id.to_string()).copied().unwrap_or_default())
                .collect();
            if counts.iter().all(|count| *count > 0) {
                return counts;
            }
            let missing = counts.iter().filter(|count| **count == 0).count();
            assert!(Instant::now() < end, "{what}: {missing} of {} are skipped", counts.len());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Running {
    async fn stop(self) {
        let _ = self.stop.send(());
        self.ended.await.expect("no panic").expect("a clean end");
    }
}

/// Runs a command that may fail: what it deletes may be made again meanwhile.
async fn attempt(broker: &RedisBroker, command: &Cmd) {
    let mut connection = broker.connection().await.expect("a connection");
    let _: Result<anybroker_redis::redis::Value, _> = command.query_async(&mut connection).await;
}

async fn act(broker: &RedisBroker, what: &str, handled: &Handled) {
    let group = handled.subscription.group_name().to_owned();
    for stream in handled.streams() {
        let on = |verb: &str| {
            let mut command = cmd("XGROUP");
            command.arg(verb).arg(&stream).arg(&group);
            command
        };
        match what {
            "stream deleted" => attempt(broker, cmd("DEL").arg(&stream)).await,
            "group deleted" => attempt(broker, &on("DESTROY")).await,
            "group made again" => {
                attempt(broker, &on("DESTROY")).await;
                attempt(broker, on("CREATE").arg("$").arg("MKSTREAM")).await;
            }
            "stream made again" => {
                attempt(broker, cmd("DEL").arg(&stream)).await;
                attempt(broker, on("CREATE").arg("0").arg("MKSTREAM")).await;
            }
            "group moved back" => attempt(broker, on("SETID").arg("0")).await,
            "consumer deleted" => {
                let consumers: Vec<BTreeMap<String, String>> =
                    run(broker, cmd("XINFO").arg("CONSUMERS").arg(&stream).arg(&group)).await;
                for consumer in consumers {
                    attempt(broker, on("DELCONSUMER").arg(&consumer["name"])).await;
                }
            }
            "retries deleted" => {
                let name = handled.destination.name();
                for end in ["", "--p0", "--p1"] {
                    let retry = format!("{{{name}}}--{group}--retry{end}");
                    attempt(broker, cmd("DEL").arg(retry)).await;
                }
            }
            _ => panic!("{what}"),
        }
    }
}

const ACTIONS: [&str; 7] = [
    "stream deleted",
    "stream made again",
    "group deleted",
    "group made again",
    "group moved back",
    "consumer deleted",
    "retries deleted",
];
const KINDS: [&str; 3] = ["queue", "ordered", "topic"];

async fn survives(url: String, what: &'static str, kind: &'static str, stopped: bool) {
    let label = format!("{url}: {what}, {kind}, stopped: {stopped}");
    let broker = connect(&url).await;
    let handled = Handled::new(kind, unique("gone"));
    let mut worker = handled.start(&broker).await;
    handled.publish(&broker, 0..10).await;
    handled.handled(&label, 0..10).await;
    if stopped {
        worker.stop().await;
        act(&broker, what, &handled).await;
        handled.publish(&broker, 10..40).await;
        worker = handled.start(&broker).await;
    } else {
        act(&broker, what, &handled).await;
        handled.publish(&broker, 10..40).await;
    }
    let counts = handled.handled(&label, 10..40).await;
    // And what comes next, which is behind all that could come twice.
    handled.publish(&broker, 40..50).await;
    handled.handled(&label, 40..50).await;
    let again = handled.handled(&label, 10..40).await;
    assert_eq!((counts.iter().sum::<u32>(), again.iter().sum::<u32>()), (30, 30), "{label}");
    worker.stop().await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_after_something_was_deleted_is_handled_once() {
    let mut tests = JoinSet::new();
    for url in servers() {
        for what in ACTIONS {
            for kind in KINDS {
                for stopped in [false, true] {
                    tests.spawn(survives(url.clone(), what, kind, stopped));
                }
            }
        }
        // The machine has other things to do.
        while let Some(test) = tests.join_next().await {
            test.expect("nothing is skipped");
        }
    }
}

async fn launch(version: RedisVersion) -> Server {
    // Restarted, it has nothing.
    let redis = Redis::new(version).config("appendonly no").config("save \"\"");
    let launched = tokio::task::spawn_blocking(move || redis.launch());
    launched.await.expect("no panic").expect("a server of its own")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_after_the_server_lost_everything_is_handled_once() {
    for version in [RedisVersion::V7_0, RedisVersion::V8, RedisVersion::Valkey9] {
        let mut server = launch(version).await;
        let broker = connect(server.url()).await;
        for (round, restarts) in [false, true].into_iter().enumerate() {
            let mut all = Vec::new();
            for kind in KINDS {
                for stopped in [false, true] {
                    // A topic's group is forgotten with all the rest: one that comes later is new.
                    if stopped && kind == "topic" {
                        continue;
                    }
                    let handled = Handled::new(kind, format!("lost-{kind}-{stopped}-{round}"));
                    let worker = handled.start(&broker).await;
                    handled.publish(&broker, 0..10).await;
                    handled.handled("before", 0..10).await;
                    let worker = if stopped {
                        worker.stop().await;
                        None
                    } else {
                        Some(worker)
                    };
                    all.push((
                        format!("{version:?}: {kind}, {stopped}, {restarts}"),
                        handled,
                        worker,
                    ));
                }
            }
            if restarts {
                server = tokio::task::spawn_blocking(move || {
                    server.restart().expect("it comes back");
                    server
                })
                .await
                .expect("no panic");
                // Until the connections that were cut are made again.
                let (end, probe) = (Instant::now() + PATIENCE, Queue::new("probe"));
                let again = || broker.producer().send(Outgoing::new(probe.clone(), message("m")));
                while again().await.is_err() {
                    assert!(Instant::now() < end, "{version:?}: it does not come back");
                    sleep(Duration::from_millis(50)).await;
                }
            } else {
                let _: String = run(&broker, &cmd("FLUSHALL")).await;
            }
            for (label, handled, worker) in all {
                handled.publish(&broker, 10..40).await;
                let worker = match worker {
                    Some(worker) => worker,
                    None => handled.start(&broker).await,
                };
                handled.handled(&label, 10..40).await;
                handled.publish(&broker, 40..50).await;
                handled.handled(&label, 40..50).await;
                let counts = handled.handled(&label, 10..40).await;
                assert_eq!(counts.iter().sum::<u32>(), 30, "{label}");
                worker.stop().await;
                // It is ours as before, and what is handled is removed.
                let meta = format!("{{{}}}--meta", handled.destination.name());
                let made: Option<String> = run(&broker, cmd("HGET").arg(meta).arg("made:0")).await;
                assert!(made.is_some(), "{label}: its stream is known to be ours");
            }
        }
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_made_again_goes_on_where_it_was() {
    for url in servers() {
        let broker = connect(&url).await;
        // Somebody else's, so that nothing is removed.
        let name = format!("Goes_{}", unique("on"));
        for number in 0..200 {
            let _: String =
                run(&broker, cmd("XADD").arg(&name).arg("*").arg("n").arg(number)).await;
        }
        let subscription =
            Subscription::topic(Topic::native(name.clone())).group("g").start(Start::Earliest);
        let mut consumer = broker.consume(&subscription, 50).await.expect("a consumer");
        for _ in 0..200 {
            ack(receive(&mut consumer).await).await;
        }
        // Until it is noted how far the group is.
        let meta = format!("{{{name}}}--meta");
        let last: Vec<(String, BTreeMap<String, String>)> =
            run(&broker, cmd("XREVRANGE").arg(&name).arg("+").arg("-").arg("COUNT").arg(1)).await;
        let end = Instant::now() + PATIENCE;
        loop {
            let noted: Option<String> = run(&broker, cmd("HGET").arg(&meta).arg("start:g:0")).await;
            if noted.is_some_and(|noted| noted.ends_with(&format!(" {}", last[0].0))) {
                break;
            }
            assert!(Instant::now() < end, "{url}: it is not noted");
            sleep(Duration::from_millis(50)).await;
        }
        let destroyed: u8 = run(&broker, cmd("XGROUP").arg("DESTROY").arg(&name).arg("g")).await;
        assert_eq!(destroyed, 1);
        send(&broker, Topic::native(name.clone()), message("next")).await;
        let next = receive(&mut consumer).await;
        assert_eq!(next.envelope().id, "next", "{url}: what was handled does not come again");
        ack(next).await;
        broker.close().await.expect("a close");
    }
}
