//! Messages between anybroker and the official CloudEvents SDK for Python, on the clients that
//! people use with it: what either writes, the other has to read.
//!
//! The clients are installed once, pinned, into the cache folder of the
//! [launchers](crate::brokers). Where there is no Python to do it with, the error names the command
//! that helps. All methods block.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::future::poll_fn;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anybroker_core::{Consumer, Envelope, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::brokers::Error;
use crate::brokers::packages::Venv;

const CLIENTS: Venv = Venv {
    name: "interchange-1",
    packages: &[
        "boto3==1.44.8",
        "cloudevents==2.2.0",
        "confluent-kafka==2.16.1",
        "pika==1.4.4",
        "redis==8.1.0",
    ],
};

/// A client library for Python.
#[derive(Debug, Clone, Copy)]
pub enum Library {
    /// pika, for `RabbitMQ`: writes to and reads from queues.
    Pika,
    /// redis-py, for Redis: writes to and reads from streams.
    Redis,
    /// confluent-kafka, for Kafka: writes to and reads from topics.
    ConfluentKafka,
    /// boto3, for SQS and SNS: writes to `queue:NAME` and `topic:NAME`, reads from `queue:NAME`.
    /// Knows the structured mode only.
    Boto3,
}

/// How an event is put into a message.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    /// Attributes beside the payload, which stays as it is.
    Binary,
    /// Attributes and payload as one JSON object.
    Structured,
}

/// Somebody else's client, connected to a broker for each call.
#[derive(Debug)]
pub struct Client {
    python: PathBuf,
    library: Library,
    url: String,
}

impl Client {
    /// A client for the broker at this URL.
    ///
    /// # Errors
    /// With the command that helps, where there is no Python 3 and none can be installed.
    pub fn new(library: Library, url: &str) -> Result<Self, Error> {
        let python = CLIENTS.install()?.join("bin/python");
        Ok(Self { python, library, url: url.to_owned() })
    }

    /// Writes the envelopes as events, each as the SDK does.
    ///
    /// # Errors
    /// With what the program printed, where it fails.
    pub fn write(&self, to: &str, mode: Mode, envelopes: &[Envelope]) -> Result<(), Error> {
        let mode = match mode {
            Mode::Binary => "binary",
            Mode::Structured => "structured",
        };
        let mut lines = String::new();
        for envelope in envelopes {
            let line =
                serde_json::to_string(&Event::of(envelope)).map_err(|error| failed(&error))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        self.run(&["write", &self.url, to, mode], &lines).map(drop)
    }

    /// Reads as many events as there are envelopes, which have to be the same in any order.
    ///
    /// # Errors
    /// With the difference, and with what the program printed where it fails.
    pub fn read(&self, from: &str, envelopes: &[Envelope]) -> Result<(), Error> {
        let count = envelopes.len().to_string();
        let lines = self.run(&["read", &self.url, from, &count], "")?;
        let mut read: Vec<Event> = lines
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|error| failed(&error))?;
        for event in &mut read {
            // The library's own notes about a message's way.
            event.attributes.retain(|name, _| !name.starts_with("ab"));
        }
        let mut written: Vec<_> = envelopes.iter().map(Event::of).collect();
        read.sort_by(|one, other| one.attributes["id"].cmp(&other.attributes["id"]));
        written.sort_by(|one, other| one.attributes["id"].cmp(&other.attributes["id"]));
        if read == written {
            return Ok(());
        }
        Err(Error::new(format!("written:\n{written:#?}\nread:\n{read:#?}")))
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let script = match self.library {
            Library::Pika => "with_pika.py",
            Library::Redis => "with_redis.py",
            Library::ConfluentKafka => "with_confluent_kafka.py",
            Library::Boto3 => "with_boto3.py",
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interchange").join(script);
        let mut process = Command::new(&self.python)
            .arg(&script)
            .args(arguments)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("cannot run {}", self.python.display())))?;
        // One that has failed by then says why on its own.
        let _ = process.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = process.wait_with_output().map_err(Error::io("cannot wait for Python"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("{} failed:\n{said}", script.display())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Envelopes with everything that has to arrive: each field, texts beyond ASCII, JSON, text, bytes
/// that are no text, and nothing.
///
/// # Panics
/// Never: the headers keep the rules.
pub fn samples() -> Vec<Envelope> {
    let time = UNIX_EPOCH + Duration::from_micros(1_795_510_800_123_456);
    let mut samples = vec![
        Envelope::new("order.created", r#"{"name":"Zoë ☃","lines":[1,2.5,null]}"#)
            .with_version(2)
            .with_source("/shop/größe")
            .with_key("customer-7 ✓")
            .with_correlation_id("conversation-1")
            .with_causation_id("cause-1")
            .with_expires(time + Duration::from_hours(24 * 3650)),
        Envelope::new("image.stored", (0..=255).collect::<Vec<u8>>())
            .with_content_type("application/octet-stream"),
        Envelope::new("note.taken", "Grüße aus Łódź, \"日本\"\n")
            .with_content_type("text/plain; charset=utf-8"),
        Envelope::new("door.closed", "").with_content_type("text/plain"),
    ];
    for (position, sample) in samples.iter_mut().enumerate() {
        sample.id = format!("interchange-{position}");
        sample.time = time;
        for (name, value) in [("subject", "orders/7 ☃"), ("tenant", "größe"), ("level", "5")] {
            sample.headers.insert(name, value).expect("the header keeps the rules");
        }
    }
    samples
}

/// Finds a received envelope among those that were written, and compares it field for field; JSON
/// as a value, since everybody writes it in another way.
///
/// # Panics
/// Where it differs, or is none of them.
pub fn assert_written(received: &Envelope, written: &[Envelope]) {
    let original = written.iter().find(|original| original.id == received.id);
    let original = original.unwrap_or_else(|| panic!("{received:?} was never written"));
    assert_eq!(Data::of(received), Data::of(original));
    let payload = original.payload.clone();
    assert_eq!(Envelope { payload, ..received.clone() }, *original);
}

/// The next delivery, within ten seconds; acknowledged.
///
/// # Panics
/// Where none comes, or it cannot be acknowledged.
pub async fn take(consumer: &mut dyn Consumer) -> Envelope {
    let mut out = Vec::new();
    let next = poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
    let received = tokio::time::timeout(Duration::from_secs(10), next).await;
    received.expect("a delivery within 10 s").expect("an open consumer");
    let delivery = out.pop().expect("a delivery");
    let envelope = Envelope::clone(delivery.envelope());
    delivery.settle(Outcome::Ack).await.expect("a settlement");
    envelope
}

/// A name that nobody else on the server has.
pub fn unique_name() -> String {
    format!("interchange-{:08x}", fastrand::u32(..))
}

/// An event as both sides say it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Event {
    attributes: BTreeMap<String, String>,
    /// In microseconds since 1970.
    times: BTreeMap<String, u64>,
    data: Data,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Data {
    Json(Value),
    Hex(String),
}

impl Event {
    /// Names every attribute by itself: core's mapping is what is tested.
    fn of(envelope: &Envelope) -> Self {
        let mut attributes: BTreeMap<_, _> =
            envelope.headers.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let mut insert = |name: &str, value: &str| attributes.insert(name.into(), value.into());
        insert("specversion", "1.0");
        insert("id", &envelope.id);
        insert("type", &envelope.r#type);
        insert("source", &envelope.source);
        insert("datacontenttype", &envelope.content_type);
        if envelope.version != 1 {
            insert("schemaversion", &envelope.version.to_string());
        }
        for (name, value) in [
            ("partitionkey", &envelope.key),
            ("correlationid", &envelope.correlation_id),
            ("causationid", &envelope.causation_id),
        ] {
            if let Some(value) = value {
                insert(name, value);
            }
        }
        let mut times = BTreeMap::from([("time".into(), microseconds(envelope.time))]);
        if let Some(expires) = envelope.expires {
            times.insert("expirytime".into(), microseconds(expires));
        }
        Self { attributes, times, data: Data::of(envelope) }
    }
}

impl Data {
    fn of(envelope: &Envelope) -> Self {
        if envelope.content_type == "application/json"
            && let Ok(value) = serde_json::from_slice(&envelope.payload)
        {
            return Self::Json(value);
        }
        let mut hex = String::new();
        for byte in &*envelope.payload {
            let _ = write!(hex, "{byte:02x}");
        }
        Self::Hex(hex)
    }
}

fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn failed(error: &serde_json::Error) -> Error {
    Error::new(format!("the events are no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_may_be_written_in_another_way() {
        let written = samples();
        let mut received = written[0].clone();
        received.payload = r#"{"lines": [1, 2.5, null], "name": "Zo\u00eb \u2603"}"#.into();
        assert_written(&received, &written);
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn bytes_may_not() {
        let written = samples();
        let mut received = written[1].clone();
        received.payload = received.payload.slice(1..);
        assert_written(&received, &written);
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn lost_header_is_seen() {
        let written = samples();
        let mut received = written[3].clone();
        received.headers.remove("tenant");
        assert_written(&received, &written);
    }
}
