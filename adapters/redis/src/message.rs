//! Envelopes as stream entries: fields `ce_*`, `content-type` and `data`.

use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::adapter::ServerClock;
use anybroker_core::cloudevents::{
    AttributeReader, bytes_to_json, is_structured, to_json_held, write_attributes_held,
};
use anybroker_core::{Envelope, Hop, Reason};
use bytes::Bytes;
use redis::Value;
use serde_json::json;

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

/// More fields than this are not copied by a script either, names and values counted.
const MOST_FIELDS: usize = 7000;

/// What is told of a value that is not decoded: as many of its bytes.
const BEGINNING: usize = 64;

/// The largest value that is decoded in an entry that is too large as a whole.
const SHORT: usize = 1024;

/// An entry as it was received.
pub(crate) struct Entry {
    pub(crate) envelope: Envelope,
    pub(crate) hop: Option<Box<Hop>>,
    /// How many bytes its fields have, names and values.
    pub(crate) size: usize,
    /// Whether that is more than a message may have.
    pub(crate) is_too_large: bool,
    /// Whether what is long in it was left out for that.
    pub(crate) is_cut: bool,
}

/// The most bytes that an entry may have. A copy of ours that keeps the fields of another producer as
/// JSON, or is JSON as a whole, has more than the message it was made of.
fn largest(fields: &[Value], most: usize) -> usize {
    let is_json = |field: &[Value]| match field {
        [Value::BulkString(name), Value::BulkString(value)] => {
            name == b"ce_nativeheaders"
                || (name == CONTENT_TYPE.as_bytes()
                    && std::str::from_utf8(value).is_ok_and(is_structured))
        }
        _ => false,
    };
    if fields.chunks(2).any(is_json) { most.saturating_mul(2) } else { most }
}

/// What becomes of an entry that is larger than messages may be.
pub(crate) fn too_large(size: usize, most: usize) -> Reason {
    let text = format!(
        "the message has {size} bytes, and max-payload is {most}: it was not decoded, and its dead \
         letter has its fields as they were; raise max-payload before it is sent back"
    );
    Reason::new(Reason::TOO_LARGE, text)
}

/// Writes the attributes of a hop alone, for a copy whose other fields are those of the original.
pub(crate) fn write_hop(hop: &Hop, mut write: impl FnMut(&[u8], &[u8])) {
    self::write(&Envelope::new("", ""), hop, Duration::ZERO, |name, value| {
        if name.starts_with(b"ce_ab") {
            write(name, value);
        }
    });
}

/// Reads any entry, ours or foreign; the id of one that has none is where it is stored. Of one with
/// more than `most` bytes the payload is kept, which takes no copy, and what else is long is only
/// told of.
pub(crate) fn read(
    id: &str,
    fields: Vec<Value>,
    default_type: &str,
    clock: &ServerClock,
    most: usize,
) -> Entry {
    let length = |value: &Value| if let Value::BulkString(bytes) = value { bytes.len() } else { 0 };
    let size = fields.iter().map(length).sum();
    let is_too_large = size > most && size > largest(&fields, most);
    let is_cut = is_too_large && fields.len() <= MOST_FIELDS;
    let mut reader = AttributeReader::new();
    let (mut content_type, mut payload, mut late) = (None, None, 0);
    let mut fields = fields.into_iter();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        let (Value::BulkString(field), Value::BulkString(value)) = (field, value) else { continue };
        let name = String::from_utf8_lossy(&field);
        if is_cut && value.len() > SHORT && name != DATA {
            let beginning = bytes_to_json(&value[..BEGINNING]);
            let name = &name[..name.floor_char_boundary(SHORT)];
            reader.native(name, json!({ "bytes": value.len(), "begins": beginning }));
            continue;
        }
        if let Some(attribute) = name.strip_prefix(PREFIX) {
            match std::str::from_utf8(&value) {
                Ok(text) => reader.attribute(attribute, text),
                Err(_) => reader.native_bytes(&name, value),
            }
        } else if name == DATA && payload.is_none() {
            payload = Some(Bytes::from(value));
        } else if name == CONTENT_TYPE && content_type.is_none() {
            match String::from_utf8(value) {
                Ok(text) => content_type = Some(text),
                Err(error) => reader.native_bytes(CONTENT_TYPE, error.into_bytes()),
            }
        } else if name == LATE {
            late = std::str::from_utf8(&value).ok().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        } else {
            reader.native_bytes(&name, value);
        }
    }
    // The milliseconds of an id are the server's time, of which a part is cut off.
    let stored =
        Id::parse(id.as_bytes()).and_then(|Id(ms, _)| ms.checked_add(1)?.checked_sub(late));
    let stored = stored.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    if let Some(time) = stored.and_then(|time| clock.local(time)) {
        reader.stored_at(time);
    }
    let (content_type, payload) = (content_type.as_deref(), payload.unwrap_or_default());
    let (envelope, hop) = reader.finish(default_type, Some(id), content_type, payload);
    Entry { envelope, hop, size, is_too_large, is_cut }
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

    fn received(id: &str, fields: Vec<Value>) -> Entry {
        read(id, fields, "orders", &ServerClock::default(), 1024 * 1024)
    }

    #[test]
    fn of_what_is_too_large_only_the_payload_is_kept() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let (long, payload) = (vec![0xff; 900_000], vec![b'x'; 200_000]);
        let fields =
            [b"user", &b"7"[..], b"raw", &long, b"ce_tenant", &long[..2000], b"data", &payload];
        let entry = received("1-0", fields.map(bulk).into());
        assert!(entry.is_too_large && entry.is_cut && entry.size > 1_100_000);
        assert_eq!(entry.envelope.payload, payload);
        let native = entry.envelope.headers.get("nativeheaders").expect("they are told of");
        assert!(native.contains(r#""raw":{"begins":{"base64":"//"#), "{native}");
        assert!(native.contains(r#""bytes":900000}"#) && native.len() < 500, "{native}");
        assert!(native.ends_with(r#""user":"7"}"#), "{native}");

        let fields = (0..4000).flat_map(|_| [bulk(b"raw"), bulk(&[0xff; 300])]).collect();
        let entry = received("1-0", fields);
        assert!(entry.is_too_large && !entry.is_cut, "no script copies so many fields");
    }

    #[test]
    fn a_copy_may_be_larger_than_what_it_was_made_of() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let entry = received("1-0", vec![bulk(b"raw"), bulk(&[0xff; 1_000_000])]);
        let copy = self::entry(&entry.envelope, &Hop::default());
        let again = received("2-0", copy);
        assert!(again.size > 1024 * 1024 && !again.is_too_large);
        assert_eq!(again.envelope.headers, entry.envelope.headers);

        let mut envelope = Envelope::new("t", vec![0xff; 1_000_000]);
        for number in 0..1001 {
            envelope.headers.insert(&format!("h{number}"), "").expect("a good name");
        }
        let again = received("3-0", self::entry(&envelope, &Hop::default()));
        assert!(again.size > 1024 * 1024 && !again.is_too_large);
        assert_eq!(again.envelope.payload, envelope.payload);
    }

    #[test]
    fn a_hop_alone_is_its_own_fields() {
        let hop = Hop { attempts: 2, ..Hop::redrive() };
        let mut names = Vec::new();
        write_hop(&hop, |name, _| names.push(String::from_utf8_lossy(name).into_owned()));
        assert_eq!(names, ["ce_abhop", "ce_abattempts"]);
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
        let entry = received("1-0", fields);
        assert_eq!((entry.envelope, entry.hop), (envelope, Some(Box::new(hop))));
        assert!(!entry.is_cut);
    }

    #[test]
    fn thousands_of_headers_are_one_field() {
        let mut envelope = Envelope::new("order.created", "{}");
        for number in 0..5000 {
            envelope.headers.insert(&format!("h{number}"), "").expect("a good name");
        }
        let fields = entry(&envelope, &Hop::default());
        assert_eq!(fields.len(), 4);
        assert_eq!(received("1-0", fields).envelope.headers.len(), 5000);
    }

    #[test]
    fn a_foreign_entry_has_defaults_and_keeps_its_fields() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let fields = vec![bulk(b"user"), bulk(b"7"), bulk(b"raw"), bulk(&[255])];
        let Entry { envelope, hop, .. } = received("17-3", fields);
        assert_eq!((&*envelope.id, &*envelope.r#type), ("17-3", "orders"));
        assert_eq!(
            envelope.headers.get("nativeheaders"),
            Some(r#"{"raw":{"base64":"/w=="},"user":"7"}"#)
        );
        assert_eq!((&*envelope.payload, hop), (&b""[..], None));
    }
}
