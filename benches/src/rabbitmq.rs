//! RabbitMQ, quorum queues with confirms and `mandatory`, against lapin used as an expert would.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anybroker::{BoxError, Queue, Subscription, connect};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::Notify;

use crate::measure::{Goal, Table, in_turn, rate};
use crate::ours::{Attributes, PAYLOAD, consume_all, name, new_queue, publish_all};

const WINDOW: usize = 1_000;
/// A multiple-ack for each hundred, and a lot of publishes as large.
const LOT: usize = 100;

pub(crate) async fn run(
    table: &mut Table,
    url: &str,
    version: &str,
    quick: bool,
) -> Result<(), BoxError> {
    let messages = if quick { 40_000 } else { 100_000 };
    let rounds = if quick { 3 } else { 5 };
    let bench = Bench { url: url.to_owned(), messages };

    // The bare client with the number of connections that serves this server best.
    let one = bench.bare_publish(1).await?;
    let two = bench.bare_publish(2).await?;
    let connections = if one > two { 1 } else { 2 };
    let (ours, bare) =
        in_turn(rounds, || bench.publish(), || bench.bare_publish(connections)).await?;
    table.add(
        format!("rabbitmq {version} · publish, 256 B, {WINDOW} in flight"),
        ours,
        Some(bare),
        Goal::Ratio(0.8),
    );

    for (attributes, messages, goal) in [
        (Attributes::Same, "the same messages", Goal::Ratio(0.8)),
        // What the attributes of an envelope cost the server and the client.
        (Attributes::None, "bare payloads", Goal::None),
    ] {
        let one = bench.bare_consume(1, attributes).await?;
        let two = bench.bare_consume(2, attributes).await?;
        let connections = if one > two { 1 } else { 2 };
        let bare_consume = || bench.bare_consume(connections, attributes);
        let (ours, bare) = in_turn(rounds, || bench.consume(), bare_consume).await?;
        let name = format!("rabbitmq {version} · consume, against {messages}");
        table.add(name, ours, Some(bare), goal);
    }
    Ok(())
}

struct Bench {
    url: String,
    messages: usize,
}

impl Bench {
    async fn publish(&self) -> Result<f64, BoxError> {
        let broker = connect(&self.url).await?;
        let queue = new_queue();
        broker.declare_destination(&queue.clone().into()).await?;
        let rate = publish_all(&broker, &queue, self.messages, WINDOW).await?;
        broker.close().await?;
        let subscription = Subscription::queue(queue);
        self.delete(&[subscription.stored_name(), subscription.derived_name("dlq")]).await?;
        Ok(rate)
    }

    async fn consume(&self) -> Result<f64, BoxError> {
        let broker = connect(&self.url).await?;
        let queue = new_queue();
        broker.declare_destination(&queue.clone().into()).await?;
        publish_all(&broker, &queue, self.messages, WINDOW).await?;
        let rate = consume_all(&broker, queue.clone(), self.messages, WINDOW).await?.in_all;
        broker.close().await?;
        let subscription = Subscription::queue(queue);
        self.delete(&[subscription.stored_name(), subscription.derived_name("dlq")]).await?;
        Ok(rate)
    }

    /// Deletes what a run has made, once its connections are gone.
    async fn delete(&self, names: &[String]) -> Result<(), BoxError> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        for name in names {
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    async fn bare_publish(&self, connections: usize) -> Result<f64, BoxError> {
        let name = name(&new_queue());
        let channels = self.channels(connections).await?;
        declare(&channels[0].1, &name).await?;
        let rate = bare_publish_all(&channels, &name, self.messages).await?;
        drop(channels);
        let dead_letters = Subscription::queue(name.clone()).derived_name("dlq");
        self.delete(&[name, dead_letters]).await?;
        Ok(rate)
    }

    async fn bare_consume(
        &self,
        connections: usize,
        attributes: Attributes,
    ) -> Result<f64, BoxError> {
        let name = name(&new_queue());
        let channels = self.channels(connections).await?;
        match attributes {
            Attributes::Same => {
                let broker = connect(&self.url).await?;
                publish_all(&broker, &Queue::new(name.clone()), self.messages, WINDOW).await?;
                broker.close().await?;
            }
            Attributes::None => {
                declare(&channels[0].1, &name).await?;
                bare_publish_all(&channels, &name, self.messages).await?;
            }
        }
        let left = Arc::new((AtomicUsize::new(self.messages), Notify::new()));
        let started = Instant::now();
        let tasks: Vec<_> = channels
            .iter()
            .map(|(_, channel)| {
                let (channel, name, left) = (channel.clone(), name.clone(), Arc::clone(&left));
                tokio::spawn(async move { bare_consumer(channel, name, left).await })
            })
            .collect();
        left.1.notified().await;
        let rate = rate(self.messages, started);
        for task in tasks {
            task.abort();
        }
        for (connection, _) in &channels {
            connection.close(200, "done".into()).await?;
        }
        drop(channels);
        let dead_letters = Subscription::queue(name.clone()).derived_name("dlq");
        self.delete(&[name, dead_letters]).await?;
        Ok(rate)
    }

    async fn channels(&self, connections: usize) -> Result<Vec<(Connection, Channel)>, BoxError> {
        let mut channels = Vec::new();
        for _ in 0..connections {
            let connection =
                Connection::connect(&self.url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            channels.push((connection, channel));
        }
        Ok(channels)
    }
}

async fn declare(channel: &Channel, queue: &str) -> Result<(), lapin::Error> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(())
}

/// Each channel has a task that publishes lots, with as many in flight as the window allows.
async fn bare_publish_all(
    channels: &[(Connection, Channel)],
    queue: &str,
    messages: usize,
) -> Result<f64, BoxError> {
    let share = messages / channels.len();
    let window = WINDOW / channels.len();
    let started = Instant::now();
    let tasks: Vec<_> = channels
        .iter()
        .map(|(_, channel)| {
            let (channel, queue) = (channel.clone(), queue.to_owned());
            tokio::spawn(async move {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let options =
                    BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let mut in_flight = VecDeque::with_capacity(window);
                for _ in 0..share {
                    if in_flight.len() == window {
                        // The oldest lot at once: a confirm covers many.
                        for confirm in in_flight.drain(..LOT) {
                            let confirm: lapin::PublisherConfirm = confirm;
                            confirm.await?;
                        }
                    }
                    let confirm = channel
                        .basic_publish(
                            "".into(),
                            queue.as_str().into(),
                            options,
                            &PAYLOAD,
                            properties.clone(),
                        )
                        .await?;
                    in_flight.push_back(confirm);
                }
                for confirm in in_flight {
                    confirm.await?;
                }
                Ok::<_, lapin::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(rate(messages, started))
}

async fn bare_consumer(
    channel: Channel,
    queue: String,
    left: Arc<(AtomicUsize, Notify)>,
) -> Result<(), lapin::Error> {
    let prefetch = u16::try_from(WINDOW).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut unacked = 0;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        std::hint::black_box(delivery.data.len());
        unacked += 1;
        let last = left.0.fetch_sub(1, Ordering::Relaxed) == 1;
        if unacked == LOT || last {
            unacked = 0;
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        if last {
            left.1.notify_one();
        }
    }
    Ok(())
}
