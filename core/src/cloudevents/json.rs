use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{AttributeReader, attribute, write_attributes_held};
use crate::{Envelope, Error, ErrorKind, Hop, Result};

/// What an event's data is when it does not say.
pub(super) const MEDIA_TYPE: &str = "application/json";

const STRUCTURED: &str = "application/cloudevents";

/// Whether a payload of this content type is a structured event, attributes and data in one.
pub fn is_structured(content_type: &str) -> bool {
    content_type.get(..STRUCTURED.len()).is_some_and(|text| text.eq_ignore_ascii_case(STRUCTURED))
}

/// Writes a structured event in JSON.
///
/// A payload that is one JSON value, and says so, becomes `data` byte for byte; any other becomes
/// `data_base64`.
pub fn to_json(envelope: &Envelope, hop: &Hop) -> Vec<u8> {
    to_json_held(envelope, hop, Duration::ZERO)
}

/// As [`to_json`], for a copy that the broker itself holds back for a while; see
/// [`write_attributes_held`].
pub fn to_json_held(envelope: &Envelope, hop: &Hop, held: Duration) -> Vec<u8> {
    let payload = &*envelope.payload;
    let mut json = Vec::with_capacity(payload.len() + 512);
    json.push(b'{');
    write_attributes_held(envelope, hop, held, |name, value| {
        member(&mut json, name, value);
        json.push(b',');
    });
    if is_structured(&envelope.content_type) {
        // It is among the attributes, which end in a comma.
        json.pop();
    } else {
        member(&mut json, attribute::CONTENT_TYPE, &envelope.content_type);
    }
    if is_json(&envelope.content_type) && is_one_value(payload) {
        json.extend_from_slice(br#","data":"#);
        json.extend_from_slice(payload);
    } else if !payload.is_empty() {
        json.extend_from_slice(br#","data_base64":""#);
        let start = json.len();
        json.resize(start + payload.len().div_ceil(3) * 4, 0);
        // The room is what padded base64 takes, so that there is no error to handle.
        let _ = STANDARD.encode_slice(payload, &mut json[start..]);
        json.push(b'"');
    }
    json.push(b'}');
    json
}

/// Reads a structured event in JSON; what was only published has no hop.
///
/// # Errors
/// [`ErrorKind::Undecodable`] when it is no CloudEvents 1 event.
pub fn from_json(json: &[u8]) -> Result<(Envelope, Option<Box<Hop>>)> {
    from_json_stored_at(json, None)
}

/// As [`from_json`], of a message that the broker stored then; see [`AttributeReader::stored_at`].
///
/// # Errors
/// As [`from_json`].
pub fn from_json_stored_at(
    json: &[u8],
    stored_at: Option<SystemTime>,
) -> Result<(Envelope, Option<Box<Hop>>)> {
    let (mut reader, data) = read(&Bytes::copy_from_slice(json))?;
    if let Some(time) = stored_at {
        reader.stored_at(time);
    }
    Ok(reader.finish("", None, None, data))
}

/// Reads the attributes, and the data as a part of `json` where it stands there as it is.
pub(super) fn read(json: &Bytes) -> Result<(AttributeReader, Bytes)> {
    let event: Event<'_> = serde_json::from_slice(json)
        .map_err(|error| refused("the payload is no CloudEvents JSON object").with_source(error))?;
    if !event.spec_version.starts_with("1.") || !event.reader.is_event() {
        return Err(refused("the JSON object has no CloudEvents 1 attributes"));
    }
    let data = match (event.base64, event.data) {
        (Some(Text(text)), _) => STANDARD
            .decode(&*text)
            .map_err(|error| refused("data_base64 is no base64").with_source(error))?
            .into(),
        (None, None) => Bytes::new(),
        (None, Some(value)) if is_json(event.reader.content_type().unwrap_or(MEDIA_TYPE)) => {
            json.slice_ref(value.get().as_bytes())
        }
        (None, Some(value)) => match serde_json::from_str(value.get()) {
            Ok(None) => Bytes::new(),
            Ok(Some(Text(Cow::Borrowed(text)))) => json.slice_ref(text.as_bytes()),
            Ok(Some(Text(Cow::Owned(text)))) => text.into(),
            Err(_) => json.slice_ref(value.get().as_bytes()),
        },
    };
    Ok((event.reader, data))
}

fn refused(context: &'static str) -> Error {
    Error::new(ErrorKind::Undecodable, context).operation("read CloudEvent")
}

fn member(json: &mut Vec<u8>, name: &str, value: &str) {
    // Text into memory: there is no error to handle.
    let _ = serde_json::to_writer(&mut *json, name);
    json.push(b':');
    let _ = serde_json::to_writer(json, value);
}

/// Whether the media type is `application/json`, `text/json` or ends in `+json`.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim_end();
    let ends = |suffix: &str| {
        media_type
            .len()
            .checked_sub(suffix.len())
            .and_then(|start| media_type.get(start..))
            .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    ends("/json") || ends("+json")
}

/// Whether these bytes come back as they are when they stand as a value in a JSON object.
///
/// Two characters that JSON takes are none of XML, by which some brokers judge a text.
fn is_one_value(payload: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(payload).is_ok_and(|value| {
        let text = value.get();
        text.len() == payload.len() && !text.contains('\u{fffe}') && !text.contains('\u{ffff}')
    })
}

struct Event<'a> {
    spec_version: Cow<'a, str>,
    reader: AttributeReader,
    data: Option<&'a RawValue>,
    base64: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Event<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EventVisitor)
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a CloudEvents JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Event<'de>, A::Error> {
        let mut spec_version = None;
        let mut reader = AttributeReader::new();
        let (mut data, mut base64) = (None, None);
        while let Some(Text(name)) = members.next_key()? {
            match &*name {
                "data" => data = data.or(Some(members.next_value()?)),
                "data_base64" => base64 = base64.or(members.next_value()?),
                attribute::SPEC_VERSION => {
                    let Text(value) = members.next_value()?;
                    spec_version.get_or_insert(value);
                }
                name => read_member(&mut reader, name, members.next_value()?)?,
            }
        }
        Ok(Event { spec_version: spec_version.unwrap_or_default(), reader, data, base64 })
    }
}

/// Numbers and booleans count as the text that stands there, `null` as an attribute that is not
/// there; CloudEvents has no attributes of other kinds.
fn read_member<E: de::Error>(
    reader: &mut AttributeReader,
    name: &str,
    value: &RawValue,
) -> Result<(), E> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'"') => {
            let Text(text) = serde_json::from_str(json).map_err(E::custom)?;
            reader.attribute(name, &text);
        }
        Some(b'{' | b'[') => {
            reader.native_json(name, value);
        }
        Some(b'n') | None => {}
        Some(_) => reader.attribute(name, json),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(members: &str) -> (Envelope, Hop) {
        let json = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{members}}}"#);
        let (envelope, hop) = from_json(json.as_bytes()).expect("it is an event");
        (envelope, *hop.unwrap_or_default())
    }

    #[test]
    fn data_is_read_as_the_content_type_says() {
        for (members, payload) in [
            ("", &b""[..]),
            (r#","data":"text""#, br#""text""#),
            (r#","data":{ "a" : 1.50 }"#, br#"{ "a" : 1.50 }"#),
            (r#","data":null"#, b"null"),
            (r#","data_base64":"/w==""#, &[0xff]),
            (r#","data":null,"data_base64":"AAE=""#, &[0, 1]),
            (r#","data":"x","data_base64":null"#, br#""x""#),
            (r#","datacontenttype":"text/plain","data":"a\u0000\n\u00e4""#, "a\0\nä".as_bytes()),
            (r#","data":"first","datacontenttype":"text/plain""#, b"first"),
            (r#","datacontenttype":"text/plain","data":null"#, b""),
            (r#","datacontenttype":"text/plain","data":[1, 2]"#, b"[1, 2]"),
            (r#","datacontenttype":"application/x+json;v=1","data":"a""#, br#""a""#),
        ] {
            assert_eq!(read_with(members).0.payload, payload, "{members}");
        }
    }

    #[test]
    fn attributes_that_are_no_strings_are_read_as_text() {
        let (envelope, hop) = read_with(
            r#","schemaversion":3,"abattempts":2,"flag":true,"ratio":1.0,"nothing":null,
               "partitionkey":null,"list":[1],"t\u0065nant":"acme","tenant":"other""#,
        );
        assert_eq!((envelope.version, hop.attempts, envelope.key), (3, 2, None));
        let headers: Vec<_> = envelope.headers.iter().collect();
        let expected = [
            ("flag", "true"),
            ("ratio", "1.0"),
            ("tenant", "acme"),
            ("nativeheaders", r#"{"list":[1]}"#),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn json_that_is_no_event_is_refused() {
        for json in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"order":1}"#,
            r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"?"}"#,
            r#"{"specversion":"1.0","id":"1","source":"s","type":"t"} x"#,
            r#"[{"specversion":"1.0","id":"1","source":"s","type":"t"}]"#,
        ] {
            let error = from_json(json.as_bytes()).expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Undecodable, "{json}");
        }
        assert!(from_json(&b"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn data_may_be_nested_deeper_than_any_parser_of_values_goes() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let envelope = Envelope::new("t", deep);
        let json = to_json(&envelope, &Hop::default());
        assert_eq!(from_json(&json).expect("it is an event").0, envelope);
    }

    #[test]
    fn a_structured_message_keeps_its_native_headers() {
        let mut reader = AttributeReader::new();
        reader.native("x-priority", 2.into());
        reader.attribute("id", "outside");
        let json = r#"{"specversion":"1.0","id":"inside","source":"s","type":"t","data":1}"#;
        let (envelope, _) =
            reader.finish("other", None, Some("application/cloudevents"), json.into());
        assert_eq!((&*envelope.id, &*envelope.payload), ("inside", &b"1"[..]));
        assert_eq!(envelope.headers.get("nativeheaders"), Some(r#"{"x-priority":2}"#));
    }

    #[test]
    fn only_a_json_value_becomes_data() {
        for (content_type, payload, data) in [
            ("application/json", r#"{"a":1}"#, r#""data":{"a":1}}"#),
            ("application/json", "a", r#""data_base64":"YQ=="}"#),
            ("application/json", " 1", r#""data_base64":"IDE="}"#),
            ("application/json", "\"\u{ffff}\"", r#""data_base64":"Iu+/vyI="}"#),
            ("text/plain", "1", r#""data_base64":"MQ=="}"#),
            ("text/plain", "", r#""datacontenttype":"text/plain"}"#),
        ] {
            let envelope = Envelope::new("t", payload).with_content_type(content_type);
            let json = String::from_utf8(to_json(&envelope, &Hop::default())).expect("text");
            assert!(json.ends_with(data), "{json}");
        }
    }
}
