//! An ordered queue keeps its order through crashes, whatever the threads of the processes that wait
//! in line for it.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    BoxError, Envelope, Message, Outcome, Queue, RunningWorker, Subscription, Worker,
};
use anybroker_rabbitmq::RabbitmqBroker;
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion};
use support::{connect, delete, send, servers, unique};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;

/// Of the processes in line, which differ as on machines with other numbers of cores.
const LOOPS: [usize; 5] = [1, 2, 1, 2, 1];

/// Fewer than one process holds, and more than one of several loops would hold alone.
const MESSAGES: usize = 14;

const PATIENCE: Duration = Duration::from_mins(1);

/// What the handlers of all processes have begun, and what lets them end.
#[derive(Clone)]
struct Handled {
    began: Arc<Mutex<Vec<usize>>>,
    permits: Arc<Semaphore>,
}

impl Default for Handled {
    fn default() -> Self {
        Self { began: Arc::default(), permits: Arc::new(Semaphore::new(0)) }
    }
}

impl Handled {
    /// The messages in the order in which each was begun for the first time.
    fn order(&self) -> Vec<usize> {
        let mut order = Vec::new();
        for number in self.began.lock().unwrap().iter().copied() {
            if !order.contains(&number) {
                order.push(number);
            }
        }
        order
    }

    async fn until_all_began(&self) -> Vec<usize> {
        let end = Instant::now() + PATIENCE;
        while self.order().len() < MESSAGES {
            assert!(Instant::now() < end, "only {:?} began", self.order());
            sleep(Duration::from_millis(20)).await;
        }
        self.order()
    }
}

async fn publish(publisher: &RabbitmqBroker, queue: &Queue) {
    for number in 0..MESSAGES {
        let envelope = Envelope::new("t", "x").with_id(number.to_string()).with_key("k");
        send(publisher, queue.clone(), envelope).await;
    }
}

/// A process that handles the queue with so many loops.
async fn process(url: &str, queue: &Queue, loops: usize, handled: &Handled) -> RunningWorker {
    let handled = handled.clone();
    let service = service_fn(move |message: Message| {
        let handled = handled.clone();
        async move {
            let number = message.envelope().id.parse().expect("a number");
            handled.began.lock().unwrap().push(number);
            handled.permits.acquire().await.expect("it stays open").forget();
            Ok::<_, BoxError>(Outcome::Ack)
        }
    });
    let worker = Worker::new(connect(url).await).concurrency(8).loops(loops);
    let worker = worker.subscribe(Subscription::queue(queue.clone()), service);
    worker.start().await.expect("it starts")
}

/// A server is killed while the first of several processes holds all messages.
async fn a_crash_keeps_the_order(version: RabbitMqVersion) {
    let launched = tokio::task::spawn_blocking(move || RabbitMq::new(version).launch()).await;
    let mut server = launched.expect("no panic").expect("it starts");
    let queue = Queue::new("ordered").ordered().partitions(3);
    let handled = Handled::default();
    let mut workers = Vec::new();
    for loops in LOOPS {
        workers.push(process(server.url(), &queue, loops, &handled).await);
    }
    publish(&*connect(server.url()).await, &queue).await;
    let end = Instant::now() + PATIENCE;
    while handled.order().is_empty() {
        assert!(Instant::now() < end, "nothing began");
        sleep(Duration::from_millis(20)).await;
    }
    // It gives them to each dead consumer in line, and takes them back.
    let restarted = tokio::task::spawn_blocking(move || {
        server.restart().expect("it starts again");
        server
    });
    let server = restarted.await.expect("no panic");
    handled.permits.add_permits(2 * MESSAGES);
    let order = handled.until_all_began().await;
    assert!(order.is_sorted(), "{order:?}");
    for worker in workers {
        let ended = timeout(PATIENCE, worker.run_until(async {})).await;
        ended.expect("it ends in time").expect("it ends");
    }
    drop(server);
}

/// Whichever holds the messages is killed, until one process is left.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_in_a_row_keep_the_order() {
    for (server, url) in servers() {
        let name = unique("ordered");
        let queue = Queue::new(name.clone()).ordered().partitions(3);
        let mut processes = Vec::new();
        for loops in LOOPS {
            let proxy = Proxy::start(&url).await.expect("a proxy");
            let handled = Handled::default();
            processes.push((process(proxy.url(), &queue, loops, &handled).await, handled, proxy));
        }
        let publisher = connect(&url).await;
        publish(&publisher, &queue).await;
        let end = Instant::now() + PATIENCE;
        while processes.len() > 1 {
            assert!(Instant::now() < end, "{server}: {} processes are left", processes.len());
            let active = processes.iter().position(|(_, handled, _)| !handled.order().is_empty());
            let Some(active) = active else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let (worker, _, proxy) = processes.swap_remove(active);
            // It finds no way to the server again.
            drop(proxy);
            drop(worker);
        }
        let (worker, handled, _proxy) = processes.remove(0);
        handled.permits.add_permits(2 * MESSAGES);
        let order = handled.until_all_began().await;
        assert!(order.is_sorted(), "{server}: {order:?}");
        let ended = timeout(PATIENCE, worker.run_until(async {})).await;
        ended.expect("it ends in time").expect("it ends");
        for partition in 0..3 {
            let native = Queue::native(format!("{name}--p{partition}"));
            delete(&publisher, &Subscription::queue(native)).await;
        }
        delete(&publisher, &Subscription::queue(queue)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_an_old_server_keeps_the_order() {
    a_crash_keeps_the_order(RabbitMqVersion::V3_10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_a_current_server_keeps_the_order() {
    a_crash_keeps_the_order(RabbitMqVersion::V4_3).await;
}
