//! Apache Kafka, idempotent and `acks=all`, against librdkafka used as an expert would: a
//! `ThreadedProducer` whose context only counts, and a `BaseConsumer`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anybroker::kafka::rdkafka::admin::{AdminClient, AdminOptions};
use anybroker::kafka::rdkafka::client::DefaultClientContext;
use anybroker::kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use anybroker::kafka::rdkafka::message::{Header, Headers, OwnedHeaders};
use anybroker::kafka::rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use anybroker::kafka::rdkafka::{ClientConfig, ClientContext, Message as _};
use anybroker::{BoxError, Broker, Queue, connect};
use tokio::task::spawn_blocking;

use crate::measure::{Goal, Table, in_turn, rate};
use crate::ours::{Attributes, PAYLOAD, consume_all, name, new_queue, publish_all};

const WINDOW: usize = 1_000;

pub(crate) async fn run(table: &mut Table, url: &str, quick: bool) -> Result<(), BoxError> {
    let messages = if quick { 300_000 } else { 1_000_000 };
    let rounds = if quick { 3 } else { 5 };
    let bench = Bench { url: url.to_owned(), messages };
    let compared = [
        (Attributes::Same, "the same messages", Goal::Ratio(0.8)),
        // What the attributes of an envelope cost the server and the client.
        (Attributes::None, "bare payloads", Goal::None),
    ];
    for (attributes, messages, goal) in compared {
        let bare = || bench.bare_publish(attributes);
        let (ours, bare) = in_turn(rounds, || bench.publish(), bare).await?;
        table.add(format!("kafka · publish, against {messages}"), ours, Some(bare), goal);
    }
    for (attributes, messages, goal) in compared {
        let bare = || bench.bare_consume(attributes);
        let (ours, bare) = in_turn(rounds, || bench.consume(), bare).await?;
        table.add(format!("kafka · consume, against {messages}"), ours, Some(bare), goal);
    }
    Ok(())
}

struct Bench {
    url: String,
    messages: usize,
}

impl Bench {
    fn config(&self) -> ClientConfig {
        let hosts = self.url.trim_start_matches("kafka://").split(['/', '?']).next();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", hosts.unwrap_or_default());
        config
    }

    /// A queue, created, with so many partitions as the library gives it.
    async fn queue(&self) -> Result<(Arc<dyn Broker>, Queue, String), BoxError> {
        let broker = connect(&self.url).await?;
        let queue = new_queue();
        let name = name(&queue);
        broker.declare_destination(&queue.clone().into()).await?;
        Ok((broker, queue, name))
    }

    /// Frees what a run took on the disk.
    async fn end(&self, broker: Arc<dyn Broker>, name: &str) -> Result<(), BoxError> {
        broker.close().await?;
        let admin: AdminClient<DefaultClientContext> = self.config().create()?;
        let topics = [name, &format!("{name}--retry"), &format!("{name}--dlq")];
        // Who only published has no topics for retries.
        admin.delete_topics(&topics, &AdminOptions::new()).await?;
        Ok(())
    }

    async fn publish(&self) -> Result<f64, BoxError> {
        let (broker, queue, name) = self.queue().await?;
        let rate = publish_all(&broker, &queue, self.messages, WINDOW).await?;
        self.end(broker, &name).await?;
        Ok(rate)
    }

    /// From the first message to the last: joining the group is not counted on either side.
    async fn consume(&self) -> Result<f64, BoxError> {
        let (broker, queue, name) = self.queue().await?;
        publish_all(&broker, &queue, self.messages, WINDOW).await?;
        let rate = consume_all(&broker, queue.clone(), self.messages, WINDOW).await?.between;
        self.end(broker, &name).await?;
        Ok(rate)
    }

    async fn bare_publish(&self, attributes: Attributes) -> Result<f64, BoxError> {
        let (broker, _, name) = self.queue().await?;
        let rate = self.bare_publish_to(name.clone(), attributes).await?;
        self.end(broker, &name).await?;
        Ok(rate)
    }

    async fn bare_publish_to(
        &self,
        topic: String,
        attributes: Attributes,
    ) -> Result<f64, BoxError> {
        let (config, messages) = (self.config(), self.messages);
        spawn_blocking(move || bare_publish_all(config, &topic, messages, attributes)).await?
    }

    async fn bare_consume(&self, attributes: Attributes) -> Result<f64, BoxError> {
        let (broker, queue, name) = self.queue().await?;
        match attributes {
            Attributes::Same => {
                publish_all(&broker, &queue, self.messages, WINDOW).await?;
            }
            Attributes::None => {
                self.bare_publish_to(name.clone(), attributes).await?;
            }
        }
        let (config, messages, topic) = (self.config(), self.messages, name.clone());
        let rate = spawn_blocking(move || bare_consume_all(config, &topic, messages, attributes))
            .await??;
        self.end(broker, &name).await?;
        Ok(rate)
    }
}

/// Counts what was stored, and lets the publishing thread go on.
struct Count {
    stored: AtomicUsize,
    failed: AtomicUsize,
    publishing: Thread,
}

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if self.stored.fetch_add(1, Ordering::Release) % 64 == 63 {
            self.publishing.unpark();
        }
    }
}

/// What an envelope without anything special carries, made beforehand.
fn headers() -> OwnedHeaders {
    [
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_id", "019ab7e2-51d3-7c44-8f0b-3f1f6f3a9d21"),
        ("ce_source", "anybroker"),
        ("ce_type", "bench.message"),
        ("ce_time", "2026-01-02T03:04:05.678901234Z"),
    ]
    .into_iter()
    .fold(OwnedHeaders::new_with_capacity(6), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

fn bare_publish_all(
    mut config: ClientConfig,
    topic: &str,
    messages: usize,
    attributes: Attributes,
) -> Result<f64, BoxError> {
    let count = Count {
        stored: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        publishing: std::thread::current(),
    };
    config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "0");
    let producer: ThreadedProducer<Count> = config.create_with_context(count)?;
    let record = || {
        let record: BaseRecord<'_, (), [u8]> = BaseRecord::to(topic).payload(&PAYLOAD[..]);
        match attributes {
            Attributes::Same => record.headers(headers()),
            Attributes::None => record,
        }
    };
    producer.send(record()).map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(30))?;
    let started = Instant::now();
    for sent in 1..messages {
        while sent - producer.context().stored.load(Ordering::Acquire) >= WINDOW {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        producer.send(record()).map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(30))?;
    let rate = rate(messages, started);
    assert_eq!(producer.context().failed.load(Ordering::Relaxed), 0, "all were stored");
    Ok(rate)
}

fn bare_consume_all(
    mut config: ClientConfig,
    topic: &str,
    messages: usize,
    attributes: Attributes,
) -> Result<f64, BoxError> {
    config
        .set("group.id", format!("{topic}-bare"))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        // With the default of a second, it does nothing for most of one whenever its queue is full.
        .set("fetch.queue.backoff.ms", "2");
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut started = None;
    let mut seen = 0;
    while seen < messages {
        // None is what it answers to a rebalance too.
        let Some(message) = consumer.poll(Duration::from_secs(1)) else { continue };
        let message = message?;
        started.get_or_insert_with(Instant::now);
        std::hint::black_box(message.payload().map(<[u8]>::len));
        if let Attributes::Same = attributes {
            // Its id, its type and the others are what an application reads them for.
            let headers = message.headers().into_iter().flat_map(Headers::iter);
            headers.for_each(|header| {
                std::hint::black_box((header.key, header.value.map(std::str::from_utf8)));
            });
        }
        consumer.store_offset_from_message(&message)?;
        seen += 1;
    }
    Ok(rate(messages, started.unwrap_or_else(Instant::now)))
}
