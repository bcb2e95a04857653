//! SQS, as ElasticMQ stands in for it, against the SDK used as an expert would: batches of ten,
//! several calls in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anybroker::{BoxError, Broker, Queue, connect};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry};
use aws_smithy_http_client::Builder;
use tokio::task::JoinSet;

use crate::measure::{Goal, Table, in_turn, rate};
use crate::ours::{PAYLOAD, consume_all, name, new_queue, publish_all};

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
        let queue = new_queue();
        self.broker.declare_destination(&queue.clone().into()).await?;
        let rate = publish_all(&self.broker, &queue, self.messages, WINDOW).await?;
        self.delete(&queue).await?;
        Ok(rate)
    }

    async fn consume(&self) -> Result<f64, BoxError> {
        let queue = new_queue();
        publish_all(&self.broker, &queue, self.messages, WINDOW).await?;
        let rate =
            consume_all(&self.broker, queue.clone(), self.messages, WINDOW).await?.until_handled;
        self.delete(&queue).await?;
        Ok(rate)
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
        let created = self.client.create_queue().queue_name(name(&new_queue())).send().await?;
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
        let queue = new_queue();
        publish_all(&self.broker, &queue, 1, WINDOW).await?;
        let url = self.client.get_queue_url().queue_name(name(&queue)).send().await?;
        let receive = self.client.receive_message().set_queue_url(url.queue_url);
        let mut received = receive.send().await?.messages.unwrap_or_default();
        self.delete(&queue).await?;
        let message = received.pop().ok_or("the message was just stored")?;
        Ok(message.body.ok_or("the message has a body")?)
    }

    async fn delete(&self, queue: &Queue) -> Result<(), BoxError> {
        for stored in [name(queue), format!("{}--dlq", name(queue))] {
            let url = self.client.get_queue_url().queue_name(stored).send().await?;
            self.client.delete_queue().set_queue_url(url.queue_url).send().await?;
        }
        Ok(())
    }
}
