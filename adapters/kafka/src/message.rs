//! Envelopes as Kafka records: the official binding of CloudEvents, headers `ce_*`.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::cloudevents::{AttributeReader, is_structured, write_attributes};
use anybroker_core::{Envelope, Hop};
use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders, Timestamp};

const CONTENT_TYPE: &str = "content-type";

/// Writes everything but key and payload.
pub(crate) fn headers(envelope: &Envelope, hop: &Hop) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(16));
    let mut add = |key: &str, value: &str| {
        headers = headers.take().map(|all| all.insert(Header { key, value: Some(value) }));
    };
    add(CONTENT_TYPE, &envelope.content_type);
    let mut name = [0; 3 + 32];
    name[..3].copy_from_slice(b"ce_");
    write_attributes(envelope, hop, |attribute, value| {
        let end = 3 + attribute.len();
        match name.get_mut(3..end) {
            // Most names are short, and no text is made for them.
            Some(place) => {
                place.copy_from_slice(attribute.as_bytes());
                add(std::str::from_utf8(&name[..end]).unwrap_or_default(), value);
            }
            None => add(&format!("ce_{attribute}"), value),
        }
    });
    headers.unwrap_or_default()
}

/// Reads any record, ours or foreign.
pub(crate) fn read(record: &impl Message, default_type: &str) -> (Envelope, Option<Box<Hop>>) {
    let mut reader = AttributeReader::new();
    // Only what the broker has stamped: the time of creation is the publisher's.
    if let Timestamp::LogAppendTime(millis) = record.timestamp()
        && let Ok(millis) = u64::try_from(millis)
    {
        // A part of the millisecond is cut off.
        reader.stored_at(UNIX_EPOCH + Duration::from_millis(millis.saturating_add(1)));
    }
    let (mut content_type, mut has_id, mut has_time) = (None, false, false);
    if let Some(headers) = record.headers() {
        for header in headers.iter() {
            let value = header.value.unwrap_or_default();
            match (header.key.strip_prefix("ce_"), std::str::from_utf8(value)) {
                (Some(attribute), Ok(value)) => {
                    has_id |= attribute == "id";
                    has_time |= attribute == "time";
                    reader.attribute(attribute, value);
                }
                (None, Ok(value)) if header.key.eq_ignore_ascii_case(CONTENT_TYPE) => {
                    content_type.get_or_insert(value);
                }
                _ => reader.native_bytes(header.key, value.to_vec()),
            }
        }
    }
    let payload = record.payload().map_or_else(Bytes::new, Bytes::copy_from_slice);
    // Of a foreign message, the same at each reading.
    let id =
        (!has_id).then(|| format!("{}:{}:{}", record.topic(), record.partition(), record.offset()));
    let (mut envelope, hop) = reader.finish(default_type, id.as_deref(), content_type, payload);
    if !has_time
        && !content_type.is_some_and(is_structured)
        && let Some(millis) = record.timestamp().to_millis().and_then(|time| time.try_into().ok())
    {
        envelope.time = UNIX_EPOCH + Duration::from_millis(millis);
    }
    if envelope.key.is_none() {
        envelope.key = record.key().filter(|key| !key.is_empty()).map(text);
    }
    (envelope, hop)
}

/// A key as text: bytes that are none as hexadecimal digits, so that keys stay apart.
fn text(key: &[u8]) -> String {
    let hexadecimal = |_| {
        key.iter().fold(String::with_capacity(2 * key.len()), |mut text, byte| {
            // Writing into a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    std::str::from_utf8(key).map_or_else(hexadecimal, str::to_owned)
}
