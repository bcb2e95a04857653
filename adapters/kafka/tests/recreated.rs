//! A topic, or a group, that somebody deleted and made again.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anybroker_core::{BoxError, Envelope, Message, Outcome, Subscription, Topic, Worker};
use anybroker_kafka::KafkaBroker;
use anybroker_kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use anybroker_kafka::rdkafka::client::DefaultClientContext;
use anybroker_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use support::{connect_single, depth, send, unique};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_mins(1);

/// A group, and the worker that handles its messages.
struct Scene {
    broker: Arc<KafkaBroker>,
    topic: String,
    subscription: Subscription,
    admin: AdminClient<DefaultClientContext>,
    seen: mpsc::UnboundedReceiver<String>,
    worker: Option<(JoinHandle<()>, oneshot::Sender<()>)>,
}

impl Scene {
    /// A worker that has handled ten messages, and has committed it.
    async fn open() -> Self {
        let broker = connect_single().await;
        let topic = unique("again");
        let subscription = Subscription::topic(Topic::new(topic.clone())).group("one");
        let admin = broker.client_config().create().expect("an admin client");
        let seen = mpsc::unbounded_channel().1;
        let mut scene = Self { broker, topic, subscription, admin, seen, worker: None };
        scene.work().await;
        scene.publish("before", 10).await;
        scene.all_come("before", 10).await;
        depth(&scene.broker, &scene.subscription, |depth| depth.ready == Some(0)).await;
        scene
    }

    async fn work(&mut self) {
        let (see, seen) = mpsc::unbounded_channel();
        self.seen = seen;
        let handler = tower::service_fn(move |message: Message| {
            let _ = see.send(message.envelope().id.clone());
            std::future::ready(Ok::<_, BoxError>(Outcome::Ack))
        });
        let worker = Worker::new(connect_single().await);
        let running = worker.subscribe(self.subscription.clone(), handler).start().await;
        let running = running.expect("a worker");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            running.run_until(stopped).await.expect("a report");
        });
        self.worker = Some((task, stop));
    }

    async fn stop(&mut self) {
        let (task, stop) = self.worker.take().expect("a worker");
        drop(stop);
        task.await.expect("no panic");
    }

    async fn delete(&self) {
        let deleted = self.admin.delete_topics(&[&self.topic], &AdminOptions::new()).await;
        assert!(deleted.expect("an answer").iter().all(Result::is_ok));
    }

    async fn create(&self) {
        let end = Instant::now() + PATIENCE;
        let topic = NewTopic::new(&self.topic, 1, TopicReplication::Fixed(1));
        while self.admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer")[0]
            .is_err()
        {
            assert!(Instant::now() < end, "it is never gone");
        }
    }

    /// Waits until no broker shows the topic any more.
    async fn is_gone(&self) {
        let (config, topic) = (self.broker.client_config(), self.topic.clone());
        let looking = tokio::task::spawn_blocking(move || {
            let reader: BaseConsumer = config.create().expect("a client");
            let end = Instant::now() + PATIENCE;
            while reader
                .fetch_metadata(Some(&topic), Duration::from_secs(10))
                .is_ok_and(|metadata| metadata.topics()[0].error().is_none())
            {
                assert!(Instant::now() < end, "it is never gone");
            }
        });
        looking.await.expect("no panic");
    }

    /// Publishes as another process does.
    async fn publish(&self, name: &str, count: usize) {
        let publisher = connect_single().await;
        for number in 0..count {
            let envelope = Envelope::new("t", "{}").with_id(format!("{name} {number}"));
            send(&publisher, Topic::new(self.topic.clone()), envelope).await;
        }
    }

    async fn all_come(&mut self, name: &str, count: usize) {
        let mut missing: HashSet<_> = (0..count).map(|number| format!("{name} {number}")).collect();
        while !missing.is_empty() {
            match timeout(PATIENCE, self.seen.recv()).await {
                Ok(Some(id)) => missing.remove(&id),
                _ => panic!("{} of {count} stay away: {missing:?}", missing.len()),
            };
        }
    }
}

/// The publisher's `declare=create` makes it, some time after.
async fn made_again_by_the_next_publisher(count: usize) {
    let mut scene = Scene::open().await;
    scene.delete().await;
    scene.is_gone().await;
    // The worker's client learns of it meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene.publish("after", count).await;
    scene.all_come("after", count).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_handles_all_when_more_come_than_were_there() {
    made_again_by_the_next_publisher(30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_handles_all_when_fewer_come_than_were_there() {
    made_again_by_the_next_publisher(5).await;
}

/// Before the worker's client can have looked whether the topic is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_handles_all_when_the_topic_is_made_again_at_once() {
    for count in [30, 5] {
        let mut scene = Scene::open().await;
        scene.delete().await;
        scene.create().await;
        scene.publish("after", count).await;
        scene.all_come("after", count).await;
        scene.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_handles_all_of_the_topic_that_was_made_again() {
    for count in [30, 5] {
        let mut scene = Scene::open().await;
        scene.stop().await;
        scene.delete().await;
        scene.create().await;
        scene.publish("after", count).await;
        scene.work().await;
        scene.all_come("after", count).await;
        scene.stop().await;
    }
}
