//! Envelopes as stream entries: fields `ce_*`, `content-type` and `data`.

use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::adapter::ServerClock;
use anybroker_core::cloudevents::{AttributeReader, to_json_held, write_attributes_held};
use anybroker_core::{Envelope, Hop};
use bytes::Bytes;
use redis::Value;
use serde_json::Value as Json;

use crate::id::Id;

const PREFIX: &str = "ce_";
const CONTENT_TYPE: &str = "content-type";
const DATA: &str = "data";
/// How many milliseconds after its time an entry that was held back came into its stream.
const LATE: &str = "anybroker-late";

/// More headers than this make an entry that scripts cannot pass on (Lua hands over at most some
/// 8,000 arguments): such an event is stored in structured mode.
const MOST_HEADERS: usize = 1000;

/// Writes an entry, which is held back from its stream for a while: `write` gets each field and its
/// value.
pub(crate) fn write(
    envelope: &Envelope,
    hop: &Hop,
    held: Duration,
    mut write: impl FnMut(&[u8], &[u8]),
) {
    if envelope.headers.iter().nth(MOST_HEADERS).is_some() {
        write(CONTENT_TYPE.as_bytes(), b"application/cloudevents+json");
        write(DATA.as_bytes(), &to_json_held(envelope, hop, held));
        return;
    }
    let mut field = String::with_capacity(64);
    write_attributes_held(envelope, hop, held, |name, value| {
        field.clear();
        field.push_str(PREFIX);
        field.push_str(name);
        write(field.as_bytes(), value.as_bytes());
    });
    write(CONTENT_TYPE.as_bytes(), envelope.content_type.as_bytes());
    write(DATA.as_bytes(), &envelope.payload);
}

/// Reads any entry, ours or foreign; the id of one that has none is where it is stored.
pub(crate) fn read(
    id: &str,
    fields: Vec<Value>,
    default_type: &str,
    clock: &ServerClock,
) -> (Envelope, Option<Box<Hop>>) {
    let mut reader = AttributeReader::new();
    let (mut content_type, mut payload, mut late) = (None, None, 0);
    let mut fields = fields.into_iter();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        let (Value::BulkString(field), Value::BulkString(value)) = (field, value) else { continue };
        let name = String::from_utf8_lossy(&field);
        if let Some(attribute) = name.strip_prefix(PREFIX) {
            match std::str::from_utf8(&value) {
                Ok(text) => reader.attribute(attribute, text),
                Err(_) => reader.native(&name, json(&value)),
            }
        } else if name == DATA && payload.is_none() {
            payload = Some(Bytes::from(value));
        } else if name == CONTENT_TYPE && content_type.is_none() {
            content_type = Some(String::from_utf8_lossy(&value).into_owned());
        } else if name == LATE {
            late = std::str::from_utf8(&value).ok().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        } else {
            reader.native(&name, json(&value));
        }
    }
    // The milliseconds of an id are the server's time, of which a part is cut off.
    let stored =
        Id::parse(id.as_bytes()).and_then(|Id(ms, _)| ms.checked_add(1)?.checked_sub(late));
    let stored = stored.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    if let Some(time) = stored.and_then(|time| clock.local(time)) {
        reader.stored_at(time);
    }
    reader.finish(default_type, Some(id), content_type.as_deref(), payload.unwrap_or_default())
}

/// Text as it is, other bytes as an array of numbers.
fn json(bytes: &[u8]) -> Json {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.into(), Json::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(envelope: &Envelope, hop: &Hop) -> Vec<Value> {
        let mut fields = Vec::new();
        write(envelope, hop, Duration::ZERO, |name, value| {
            fields.push(Value::BulkString(name.to_vec()));
            fields.push(Value::BulkString(value.to_vec()));
        });
        fields
    }

    #[test]
    fn what_is_written_is_read() {
        let envelope = Envelope::new("order.created", vec![0, 255, 7])
            .with_key("7")
            .with_header("tenant", "ä")
            .expect("a good name");
        let hop = Hop { id: Some("h".into()), attempts: 3, ..Hop::default() };
        let fields = entry(&envelope, &hop);
        assert!(fields.contains(&Value::BulkString(b"ce_partitionkey".to_vec())));
        assert_eq!(
            read("1-0", fields, "orders", &ServerClock::default()),
            (envelope, Some(Box::new(hop)))
        );
    }

    #[test]
    fn thousands_of_headers_are_one_field() {
        let mut envelope = Envelope::new("order.created", "{}");
        for number in 0..5000 {
            envelope.headers.insert(&format!("h{number}"), "").expect("a good name");
        }
        let fields = entry(&envelope, &Hop::default());
        assert_eq!(fields.len(), 4);
        assert_eq!(
            read("1-0", fields, "orders", &ServerClock::default()).0.headers.iter().count(),
            5000
        );
    }

    #[test]
    fn a_foreign_entry_has_defaults_and_keeps_its_fields() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let fields = vec![bulk(b"user"), bulk(b"7"), bulk(b"raw"), bulk(&[255])];
        let (envelope, hop) = read("17-3", fields, "orders", &ServerClock::default());
        assert_eq!((&*envelope.id, &*envelope.r#type), ("17-3", "orders"));
        assert_eq!(envelope.headers.get("nativeheaders"), Some(r#"{"raw":[255],"user":"7"}"#));
        assert_eq!((&*envelope.payload, hop), (&b""[..], None));
    }
}
