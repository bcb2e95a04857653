//! SQS, as ElasticMQ stands in for it, against the SDK used as an expert would: batches of ten,
//! several calls in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anybroker::{
    BoxError, Broker, Envelope, Message, Outcome, Queue, Subscription, Worker, connect,
};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry};
use aws_smithy_http_client::Builder;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower::service_fn;

use crate::measure::{Goal, Table, in_turn, rate};

const PAYLOAD: [u8; 256] = [b'x'; 256];
const WINDOW: usize = 1_000;
const BATCH: usize = 10;
/// Calls in flight.
const CALLS: usize = 16;

pub(crate) async fn run(table: &mut Table, url: &str, quick: bool) -> Result<(), BoxError> {
    let messages = if quick { 10_000 } else { 40_000 };
    let rounds = if quick { 3 } else { 5 };
    // One for all rounds, as the bare client is: the server takes its time for a new connection.
    let broker = connect(&format!("{url}?sns=off&poll=1s")).await?;
    let bench = Bench { broker, client: bare(url)?, messages };
    let body = bench.body().await?;
    for (body, name, goal) in [
        (body.as_str(), "the same messages", Goal::Ratio(0.9)),
        // What the attributes of an envelope cost the server and the client.
        (std::str::from_utf8(&PAYLOAD)?, "bare payloads", Goal::None),
    ] {
        let (ours, bare) = in_turn(rounds, || bench.publish(), || bench.bare_publish(body)).await?;
        table.add(
            format!("sqs · publish, {WINDOW} in flight, against {name}"),
            ours,
            Some(bare),
            goal,
        );
        let (ours, bare) = in_turn(rounds, || bench.consume(), || bench.bare_consume(body)).await?;
        table.add(format!("sqs · consume, against {name}"), ours, Some(bare), goal);
    }
    bench.broker.close().await?;
    Ok(())
}

fn bare(url: &str) -> Result<Client, BoxError> {
    let address = url.strip_prefix("sqs+").ok_or("the URL is not sqs+http://host:port")?;
    let config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
        .endpoint_url(address)
        .http_client(Builder::new().build_http())
        .build();
    Ok(Client::from_conf(config))
}

struct Bench {
    broker: Arc<dyn Broker>,
    client: Client,
    messages: usize,
}

impl Bench {
    async fn publish(&self) -> Result<f64, BoxError> {
        let queue = Queue::new(unique_name());
        self.broker.declare_destination(&queue.clone().into()).await?;
        let rate = publish_all(&self.broker, &queue, self.messages).await?;
        self.delete(&queue).await?;
        Ok(rate)
    }

    async fn consume(&self) -> Result<f64, BoxError> {
        let queue = Queue::new(unique_name());
        publish_all(&self.broker, &queue, self.messages).await?;
        let left = Arc::new((AtomicUsize::new(self.messages), Notify::new()));
        let service = service_fn({
            let left = Arc::clone(&left);
            move |message: Message| {
                std::hint::black_box(message.envelope().payload.len());
                if left.0.fetch_sub(1, Ordering::Relaxed) == 1 {
                    left.1.notify_one();
                }
                std::future::ready(Ok::<_, BoxError>(Outcome::Ack))
            }
        });
        let started = Instant::now();
        let worker = Worker::new(Arc::clone(&self.broker))
            .subscribe(Subscription::queue(queue.clone()), service)
            .concurrency(WINDOW)
            .start()
            .await?;
        let mut rate_of_all = 0.0;
        let report = worker
            .run_until(async {
                left.1.notified().await;
                rate_of_all = rate(self.messages, started);
            })
            .await?;
        assert_eq!(report.handled, self.messages as u64, "{report}");
        self.delete(&queue).await?;
        Ok(rate_of_all)
    }

    async fn bare_publish(&self, body: &str) -> Result<f64, BoxError> {
        let queue = self.create().await?;
        let rate = self.send_all(&queue, body).await?;
        self.client.delete_queue().queue_url(queue).send().await?;
        Ok(rate)
    }

    async fn bare_consume(&self, body: &str) -> Result<f64, BoxError> {
        let queue = self.create().await?;
        self.send_all(&queue, body).await?;
        let left = Arc::new(AtomicUsize::new(self.messages));
        let started = Instant::now();
        let mut pollers = JoinSet::new();
        for _ in 0..CALLS {
            let (client, queue, left) = (self.client.clone(), queue.clone(), Arc::clone(&left));
            let messages = self.messages;
            pollers.spawn(async move {
                let mut deletes = JoinSet::new();
                let mut rate_of_all = None;
                while left.load(Ordering::Relaxed) > 0 {
                    let receive = client.receive_message().queue_url(&queue);
                    let received = receive.max_number_of_messages(10).send().await?;
                    let received = received.messages.unwrap_or_default();
                    let before = left.fetch_sub(received.len(), Ordering::Relaxed);
                    if before > 0 && before == received.len() {
                        rate_of_all = Some(rate(messages, started));
                    }
                    if received.is_empty() {
                        continue;
                    }
                    let mut delete = client.delete_message_batch().queue_url(&queue);
                    for (id, message) in received.into_iter().enumerate() {
                        std::hint::black_box(message.body.map_or(0, |body| body.len()));
                        delete = delete.entries(
                            DeleteMessageBatchRequestEntry::builder()
                                .id(id.to_string())
                                .set_receipt_handle(message.receipt_handle)
                                .build()?,
                        );
                    }
                    deletes.spawn(delete.send());
                }
                while let Some(deleted) = deletes.join_next().await {
                    assert!(deleted??.failed().is_empty());
                }
                Ok::<_, BoxError>(rate_of_all)
            });
        }
        let mut rate = 0.0;
        while let Some(done) = pollers.join_next().await {
            // Of the one that took the last.
            rate = done??.unwrap_or(rate);
        }
        self.client.delete_queue().queue_url(queue).send().await?;
        Ok(rate)
    }

    async fn create(&self) -> Result<String, BoxError> {
        let created = self.client.create_queue().queue_name(unique_name()).send().await?;
        Ok(created.queue_url.ok_or("no URL came back")?)
    }

    async fn send_all(&self, queue: &str, body: &str) -> Result<f64, BoxError> {
        let started = Instant::now();
        let mut calls = JoinSet::new();
        for _ in 0..self.messages / BATCH {
            if calls.len() == CALLS {
                calls.join_next().await.ok_or("calls are in flight")???;
            }
            let mut send = self.client.send_message_batch().queue_url(queue);
            for id in 0..BATCH {
                let entry = SendMessageBatchRequestEntry::builder().id(id.to_string());
                send = send.entries(entry.message_body(body).build()?);
            }
            calls.spawn(async move {
                let answer = send.send().await?;
                if answer.failed().is_empty() { Ok(()) } else { Err("an entry failed".into()) }
            });
        }
        while let Some(sent) = calls.join_next().await {
            let sent: Result<(), BoxError> = sent?;
            sent?;
        }
        Ok(rate(self.messages, started))
    }

    /// What the adapter stores for a payload.
    async fn body(&self) -> Result<String, BoxError> {
        let queue = Queue::new(unique_name());
        publish_all(&self.broker, &queue, 1).await?;
        let url = self.client.get_queue_url().queue_name(native(&queue)).send().await?;
        let receive = self.client.receive_message().set_queue_url(url.queue_url);
        let mut received = receive.send().await?.messages.unwrap_or_default();
        self.delete(&queue).await?;
        let message = received.pop().ok_or("the message was just stored")?;
        Ok(message.body.ok_or("the message has a body")?)
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BoxError> {
        for name in [native(queue), format!("{}--dlq", native(queue))] {
            let url = self.client.get_queue_url().queue_name(name).send().await?;
            self.client.delete_queue().set_queue_url(url.queue_url).send().await?;
        }
        Ok(())
    }
}

/// Publishes through the public API, `WINDOW` in flight.
async fn publish_all(
    broker: &Arc<dyn Broker>,
    queue: &Queue,
    messages: usize,
) -> Result<f64, BoxError> {
    let publisher = broker.publisher();
    let started = Instant::now();
    let mut window = VecDeque::with_capacity(WINDOW);
    for _ in 0..messages {
        if window.len() == WINDOW {
            let oldest: anybroker::Confirmation = window.pop_front().expect("a full window");
            oldest.await?;
        }
        let envelope = Envelope::new("bench.message", &PAYLOAD[..]);
        window.push_back(publisher.publish_envelope(queue.clone(), envelope).start());
    }
    for confirmation in window {
        confirmation.await?;
    }
    Ok(rate(messages, started))
}

fn native(queue: &Queue) -> String {
    anybroker::Destination::from(queue.clone()).name().to_owned()
}

fn unique_name() -> String {
    format!("bench-{}", Envelope::new("name", "").id)
}
