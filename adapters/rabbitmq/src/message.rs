//! Envelopes as AMQP 0-9-1 messages: headers `ce-*`, the payload as it is.

use std::time::Duration;

use anybroker_core::cloudevents::{AttributeReader, bytes_to_json, write_attributes_held};
use anybroker_core::{Envelope, Hop};
use lapin::BasicProperties;
use lapin::message;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value};

/// What the official libraries write, and what others do.
const PREFIXES: [&str; 3] = ["ce-", "cloudEvents_", "cloudEvents:"];

/// How often the queue saw this copy come back; absent for the first delivery.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// How often the queue handed it out, releases included. RabbitMQ 4 writes it from the second time
/// on; it is there that `basic.nack` does not raise the count above.
const ACQUIRED_COUNT: &str = "x-acquired-count";

/// What the broker writes about a message's way. With it, a copy that takes the same way again
/// would be dropped as a cycle.
const WAY: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-opt-"];

const PERSISTENT: u8 = 2;

/// A message as it was received.
pub(crate) struct Received {
    pub(crate) envelope: Envelope,
    pub(crate) hop: Option<Box<Hop>>,
    /// How often it came back by failure.
    pub(crate) returned: u32,
    /// Whether the broker counts apart from that how often it handed it out.
    pub(crate) counts_apart: bool,
}

/// Writes everything but the payload, of a copy that spends a while in a delay queue; answers also
/// how many bytes the headers take.
pub(crate) fn properties(
    envelope: &Envelope,
    hop: &Hop,
    held: Duration,
) -> (BasicProperties, usize) {
    let mut table = FieldTable::default();
    let mut size = 0;
    write_attributes_held(envelope, hop, held, |name, value| {
        size += name.len() + value.len() + "ce-".len() + 6;
        let name = ShortString::try_new(["ce-", name].concat());
        if let Ok(name) = name {
            table.insert(name, AMQPValue::LongString(value.into()));
        }
    });
    let content_type = ShortString::try_new(&*envelope.content_type).ok();
    if content_type.is_none() {
        let whole = AMQPValue::LongString(envelope.content_type.as_ref().into());
        table.insert("ce-datacontenttype".into(), whole);
    }
    let timestamp = envelope.time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut properties = BasicProperties::default();
    if let Some(content_type) = content_type {
        properties = properties.with_content_type(content_type);
    }
    let properties = properties
        .with_headers(table)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(property(&envelope.id))
        .with_timestamp(timestamp.as_secs());
    (properties, size)
}

/// A property or a routing key, which hold at most 255 bytes. What is longer, an id or a type of
/// 256, stands whole in the headers.
pub(crate) fn property(text: &str) -> ShortString {
    ShortString::try_new(&text[..text.floor_char_boundary(255)]).unwrap_or_else(|_| "".into())
}

/// Reads any message, ours or foreign.
///
/// A publisher can write the broker's counters too, and a copy of a message carries those of the
/// first one. The broker writes over them only where it has something to count: nothing in what it
/// hands out for the first time, and no more failures than times that it was handed out.
pub(crate) fn read(message: message::Delivery, default_type: &str) -> Received {
    let message::Delivery { properties, data, redelivered, .. } = message;
    let mut reader = AttributeReader::new();
    // The broker writes no times.
    reader.stored_earlier();
    let (mut returned, mut acquired) = (0, None);
    let mut ours = false;
    if let Some(headers) = properties.headers() {
        for (name, value) in headers {
            let name = name.as_str();
            if let Some(attribute) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
                ours |= attribute == "time";
                match text(value) {
                    Some(text) => reader.attribute(attribute, &text),
                    None => native(&mut reader, name, value),
                }
            } else if name == DELIVERY_COUNT {
                returned = count(value).unwrap_or(0);
            } else if name == ACQUIRED_COUNT {
                acquired = count(value);
            } else if !WAY.iter().any(|way| name.starts_with(way)) {
                native(&mut reader, name, value);
            }
        }
    }
    let mut property = |name, value: Option<Value>| {
        if let Some(value) = value {
            reader.native(name, value);
        }
    };
    let short = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().into());
    property("correlation-id", short(properties.correlation_id()));
    property("reply-to", short(properties.reply_to()));
    property("content-encoding", short(properties.content_encoding()));
    property("expiration", short(properties.expiration()));
    property("type", short(properties.kind()));
    property("user-id", short(properties.user_id()));
    property("app-id", short(properties.app_id()));
    property("cluster-id", short(properties.cluster_id()));
    property("priority", properties.priority().map(Value::from));
    if !ours {
        property("timestamp", properties.timestamp().map(Value::from));
    }
    let message_id = properties.message_id().as_ref().map(ShortString::as_str);
    let content_type = properties.content_type().as_ref().map(ShortString::as_str);
    let (envelope, hop) = reader.finish(default_type, message_id, content_type, data.into());
    let (returned, acquired) = if redelivered { (returned, acquired) } else { (0, None) };
    let returned = returned.min(acquired.unwrap_or(u32::MAX));
    Received { envelope, hop, returned, counts_apart: acquired.is_some() }
}

/// The text of a CloudEvents attribute, which other libraries also write as numbers.
fn text(value: &AMQPValue) -> Option<std::borrow::Cow<'_, str>> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Into::into),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        AMQPValue::Boolean(flag) => Some(flag.to_string().into()),
        number => integer(number).map(|number| number.to_string().into()),
    }
}

fn count(value: &AMQPValue) -> Option<u32> {
    integer(value).and_then(|count| u32::try_from(count).ok())
}

fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => i64::from(*number),
        AMQPValue::ShortShortUInt(number) => i64::from(*number),
        AMQPValue::ShortInt(number) => i64::from(*number),
        AMQPValue::ShortUInt(number) => i64::from(*number),
        AMQPValue::LongInt(number) => i64::from(*number),
        AMQPValue::LongUInt(number) => i64::from(*number),
        AMQPValue::LongLongInt(number) => *number,
        _ => return None,
    })
}

/// Reads a header that is no attribute.
fn native(reader: &mut AttributeReader, name: &str, value: &AMQPValue) {
    match value {
        AMQPValue::LongString(text) => reader.native_bytes(name, text.as_bytes().to_vec()),
        AMQPValue::ByteArray(array) => reader.native_bytes(name, array.as_slice().to_vec()),
        value => reader.native(name, json(value)),
    }
}

/// The nearest JSON of any header.
fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Float(number) => Value::from(*number),
        AMQPValue::Double(number) => Value::from(*number),
        AMQPValue::Boolean(flag) => Value::from(*flag),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        AMQPValue::DecimalValue(decimal) => {
            Value::from(format!("{}e-{}", decimal.value, decimal.scale))
        }
        AMQPValue::LongString(text) => bytes_to_json(text.as_bytes()),
        AMQPValue::ByteArray(array) => bytes_to_json(array.as_slice()),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            let members = table.into_iter().map(|(name, value)| (name.to_string(), json(value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        AMQPValue::Void => Value::Null,
        other => match (integer(other), text(other)) {
            (Some(number), _) => number.into(),
            (None, text) => text.into(),
        },
    }
}
