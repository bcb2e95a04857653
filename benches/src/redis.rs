//! Redis Streams against redis-rs used as an expert would: one multiplexed connection, pipelined
//! `XADD`, `XREADGROUP COUNT 500` and one `XACK` for all that it answered.

use std::time::{Duration, Instant};

use anybroker::{BoxError, Envelope, connect};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, Value};

use crate::measure::{Goal, Table, in_turn, rate};
use crate::ours::{Attributes, PAYLOAD, consume_all, name, new_queue, publish_all};

const WINDOW: usize = 1_000;
/// Messages of a pipeline; as many pipelines are in flight as the window allows.
const LOT: usize = 250;
const COUNT: usize = 500;
const GROUP: &str = "bench";

pub(crate) async fn run(
    table: &mut Table,
    url: &str,
    version: &str,
    quick: bool,
) -> Result<(), BoxError> {
    let messages = if quick { 100_000 } else { 300_000 };
    let rounds = if quick { 3 } else { 5 };
    let bench = Bench { url: url.to_owned(), messages };
    let mode = bench.fsync_mode().await?;
    for (attributes, messages, goal) in [
        (Attributes::Same, "the same fields", Goal::Ratio(0.8)),
        // What the attributes of an envelope cost the server and the client.
        (Attributes::None, "bare payloads", Goal::None),
    ] {
        let (ours, bare) =
            in_turn(rounds, || bench.publish(), || bench.bare_publish(attributes)).await?;
        let name = format!("redis {version}, {mode} · publish, against {messages}");
        table.add(name, ours, Some(bare), goal);
        let (ours, bare) =
            in_turn(rounds, || bench.consume(), || bench.bare_consume(attributes)).await?;
        let name = format!("redis {version}, {mode} · consume, against {messages}");
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
        let name = name(&queue);
        broker.declare_destination(&queue.clone().into()).await?;
        self.rewrite().await?;
        let rate = publish_all(&broker, &queue, self.messages, WINDOW).await?;
        broker.close().await?;
        self.delete(&name).await?;
        Ok(rate)
    }

    async fn consume(&self) -> Result<f64, BoxError> {
        let broker = connect(&self.url).await?;
        let queue = new_queue();
        let name = name(&queue);
        broker.declare_destination(&queue.clone().into()).await?;
        publish_all(&broker, &queue, self.messages, WINDOW).await?;
        self.rewrite().await?;
        let rate = consume_all(&broker, queue.clone(), self.messages, WINDOW).await?.in_all;
        broker.close().await?;
        self.delete(&name).await?;
        Ok(rate)
    }

    async fn bare_publish(&self, attributes: Attributes) -> Result<f64, BoxError> {
        let (name, connection) = (name(&new_queue()), self.connection().await?);
        self.rewrite().await?;
        let rate = bare_publish_all(&connection, &name, self.messages, attributes).await?;
        self.delete(&name).await?;
        Ok(rate)
    }

    async fn bare_consume(&self, attributes: Attributes) -> Result<f64, BoxError> {
        let (name, mut connection) = (name(&new_queue()), self.connection().await?);
        bare_publish_all(&connection, &name, self.messages, attributes).await?;
        let create = redis::cmd("XGROUP").arg("CREATE").arg(&name).arg(GROUP).arg("0").take();
        create.query_async::<()>(&mut connection).await?;
        self.rewrite().await?;
        let started = Instant::now();
        let mut left = self.messages;
        let mut acknowledging = FuturesUnordered::new();
        while left > 0 {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(GROUP).arg("one").arg("COUNT").arg(COUNT).arg("STREAMS");
            let found: Value = read.arg(&name).arg(">").query_async(&mut connection).await?;
            let mut ack = redis::cmd("XACK");
            ack.arg(&name).arg(GROUP);
            left -= read_all(found, |entry, event| {
                std::hint::black_box((&event.id, &event.r#type, event.payload.len()));
                ack.arg(entry);
            });
            // The next read does not wait for it.
            let mut connection = connection.clone();
            acknowledging.push(async move { ack.query_async::<u64>(&mut connection).await });
            if acknowledging.len() > 2
                && let Some(acknowledged) = acknowledging.next().await
            {
                acknowledged?;
            }
        }
        while let Some(acknowledged) = acknowledging.next().await {
            acknowledged?;
        }
        let rate = rate(self.messages, started);
        self.delete(&name).await?;
        Ok(rate)
    }

    async fn connection(&self) -> Result<MultiplexedConnection, BoxError> {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WINDOW);
        let client = Client::open(&*self.url)?;
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// When the server has what it confirms on disk; the same for both sides.
    async fn fsync_mode(&self) -> Result<String, BoxError> {
        let mut connection = self.connection().await?;
        let mut setting = async |name: &str| {
            let command = redis::cmd("CONFIG").arg("GET").arg(name).take();
            let found: Vec<String> = command.query_async(&mut connection).await?;
            Ok::<_, BoxError>(found.into_iter().nth(1).unwrap_or_default())
        };
        Ok(match &*setting("appendonly").await? {
            "yes" => format!("fsync {}", setting("appendfsync").await?),
            _ => "no fsync".to_owned(),
        })
    }

    /// Has the server rewrite its log now: by itself it would do so during some of the runs, and take
    /// one of the cores for it.
    async fn rewrite(&self) -> Result<(), BoxError> {
        let mut connection = self.connection().await?;
        // Refused where it does so already.
        let _ = redis::cmd("BGREWRITEAOF").query_async::<String>(&mut connection).await;
        loop {
            let info = redis::cmd("INFO").arg("persistence").take();
            let info: String = info.query_async(&mut connection).await?;
            let idle = ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"];
            if idle.iter().all(|idle| info.contains(idle)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes what a run has made.
    async fn delete(&self, name: &str) -> Result<(), BoxError> {
        let mut connection = self.connection().await?;
        let mut delete = redis::cmd("DEL");
        delete.arg(name);
        for derived in ["meta", "retry", "delayed", "dlq"] {
            delete.arg(format!("{{{name}}}--{name}--{derived}"));
        }
        delete.arg(format!("{{{name}}}--meta"));
        delete.query_async::<u64>(&mut connection).await?;
        Ok(())
    }
}

async fn bare_publish_all(
    connection: &MultiplexedConnection,
    name: &str,
    messages: usize,
    attributes: Attributes,
) -> Result<f64, BoxError> {
    let started = Instant::now();
    let mut flights = FuturesUnordered::new();
    for _ in 0..messages / LOT {
        if flights.len() == WINDOW / LOT
            && let Some(flown) = flights.next().await
        {
            flown??;
        }
        let mut pipeline = Pipeline::with_capacity(LOT);
        for _ in 0..LOT {
            let command = pipeline.cmd("XADD").arg(name).arg("*");
            if let Attributes::Same = attributes {
                // As many and as long as those that an envelope has.
                let envelope = Envelope::new("bench.message", "");
                command.arg("ce_specversion").arg("1.0").arg("ce_id").arg(envelope.id);
                command.arg("ce_source").arg("anybroker").arg("ce_type").arg("bench.message");
                command.arg("ce_time").arg("2026-11-24T12:00:00.123456789Z");
                command.arg("content-type").arg("application/json");
            }
            command.arg("data").arg(&PAYLOAD[..]).ignore();
        }
        let mut connection = connection.clone();
        // Begun at once, so that it is on its way while the next is made.
        flights.push(tokio::spawn(async move { pipeline.exec_async(&mut connection).await }));
    }
    while let Some(flown) = flights.next().await {
        flown??;
    }
    Ok(rate(messages, started))
}

/// What an application looks at in any case: which message it is, and of what type.
#[derive(Default)]
struct Event {
    id: String,
    r#type: String,
    payload: Vec<u8>,
}

/// Calls `each` with the entry's id and the event of all that a read answered; says how many those
/// were.
fn read_all(found: Value, mut each: impl FnMut(Vec<u8>, Event)) -> usize {
    let array = |value| match value {
        Value::Array(members) => members,
        _ => Vec::new(),
    };
    let mut count = 0;
    let streams = array(found).into_iter();
    for entry in streams.flat_map(array).flat_map(array).map(array) {
        let mut entry = entry.into_iter();
        let (Some(Value::BulkString(id)), Some(Value::Array(fields))) =
            (entry.next(), entry.next())
        else {
            continue;
        };
        let mut event = Event::default();
        let text = |value| String::from_utf8(value).unwrap_or_default();
        let mut fields = fields.into_iter();
        while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) =
            (fields.next(), fields.next())
        {
            match &*name {
                b"ce_id" => event.id = text(value),
                b"ce_type" => event.r#type = text(value),
                b"data" => event.payload = value,
                _ => {}
            }
        }
        each(id, event);
        count += 1;
    }
    count
}
