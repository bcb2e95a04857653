//! What came with a message and is no CloudEvents attribute: the header `nativeheaders`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The only member of the object that stands for bytes.
const BASE64: &str = "base64";

/// The value of a native header in JSON: text as it is, other bytes as `{"base64": "…"}`.
///
/// It is for bytes within a value that [`AttributeReader::native`](super::AttributeReader::native)
/// gets; for a header that is nothing else, `native_bytes` makes no copy of them.
pub fn bytes_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !is_longer_than_base64(text) => text.into(),
        _ => Value::Object(Map::from_iter([(BASE64.to_owned(), STANDARD.encode(bytes).into())])),
    }
}

/// Native headers, by name; of two of one name the first counts.
#[derive(Debug, Default)]
pub(super) struct Native(BTreeMap<String, Header>);

#[derive(Debug)]
enum Header {
    Value(Value),
    /// Written as text, or in base64 where it is none, and so in memory once until then.
    Bytes(Bytes),
    /// JSON as it came, which takes less memory than its values.
    Json(Box<RawValue>),
}

impl Native {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn value(&mut self, name: &str, value: Value) {
        self.first(name, || Header::Value(value));
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: impl FnOnce() -> Bytes) {
        self.first(name, || Header::Bytes(bytes()));
    }

    pub(super) fn json(&mut self, name: &str, json: &RawValue) {
        self.first(name, || Header::Json(json.to_owned()));
    }

    fn first(&mut self, name: &str, header: impl FnOnce() -> Header) {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), header());
        }
    }

    /// Takes those in that another one has, and this one has not.
    pub(super) fn add(&mut self, other: Self) {
        for (name, header) in other.0 {
            self.0.entry(name).or_insert(header);
        }
    }

    /// Joins them with those that an earlier hop kept, which come first.
    pub(super) fn join(&mut self, name: &str, kept: String) {
        match serde_json::from_str::<Kept>(&kept) {
            Ok(Kept(headers)) => {
                self.0.extend(headers.into_iter().map(|(name, json)| (name, Header::Json(json))));
            }
            Err(_) => self.bytes(name, || kept.into()),
        }
    }

    /// One JSON object. Each header is freed when it is written, so that the whole is in memory
    /// once.
    pub(super) fn into_json(self) -> String {
        let sizes = self.0.iter().map(|(name, header)| name.len() + header.size() + 24);
        let mut json = Vec::with_capacity(sizes.sum());
        json.push(b'{');
        for (name, header) in self.0 {
            if json.len() > 1 {
                json.push(b',');
            }
            // Into memory: there is no error to handle.
            let _ = serde_json::to_writer(&mut json, &name);
            json.push(b':');
            header.write(&mut json);
        }
        json.push(b'}');
        // What is written is text: there is nothing to replace.
        String::from_utf8(json).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Kept(BTreeMap<String, Box<RawValue>>);

impl Header {
    /// About as many bytes as it takes in JSON.
    fn size(&self) -> usize {
        match self {
            Self::Value(_) => 0,
            Self::Bytes(bytes) => encoded(bytes.len()),
            Self::Json(json) => json.get().len(),
        }
    }

    fn write(self, json: &mut Vec<u8>) {
        match self {
            // Into memory: there is no error to handle.
            Self::Value(value) => drop(serde_json::to_writer(json, &value)),
            Self::Json(value) => json.extend_from_slice(value.get().as_bytes()),
            Self::Bytes(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) if !is_longer_than_base64(text) => {
                    drop(serde_json::to_writer(json, text));
                }
                _ => {
                    json.extend_from_slice(br#"{"base64":""#);
                    let start = json.len();
                    json.resize(start + encoded(bytes.len()), 0);
                    // The room is what padded base64 takes.
                    let _ = STANDARD.encode_slice(&bytes, &mut json[start..]);
                    json.extend_from_slice(br#""}"#);
                }
            },
        }
    }
}

/// How many bytes so many take in base64.
const fn encoded(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Whether JSON would write so many control characters, each as six bytes, that base64 is shorter.
fn is_longer_than_base64(text: &str) -> bool {
    let escaped = |byte: &u8| *byte < b' ' && !matches!(byte, b'\n' | b'\r' | b'\t' | 8 | 12);
    // What base64 takes more than the text itself, with what stands around it.
    let longer = text.len() / 3 + 16;
    text.bytes().filter(|byte| escaped(byte)).nth(longer / 5).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(headers: &[(&str, &[u8])]) -> String {
        let mut native = Native::default();
        for (name, bytes) in headers {
            native.bytes(name, || Bytes::copy_from_slice(bytes));
        }
        native.into_json()
    }

    #[test]
    fn text_stays_text_and_other_bytes_are_base64() {
        let headers: &[(&str, &[u8])] =
            &[("user", b"7 \"a\""), ("raw", &[255, 0]), ("note", "größe\n".as_bytes())];
        let json: Value = serde_json::from_str(&written(headers)).expect("JSON");
        let expected = json!({"user": "7 \"a\"", "raw": {"base64": "/wA="}, "note": "größe\n"});
        assert_eq!(json, expected);
        for (name, bytes) in headers {
            assert_eq!(bytes_to_json(bytes), expected[name]);
        }
    }

    #[test]
    fn nothing_takes_much_more_than_base64_does() {
        for byte in [0, 7, b'a', b'\n', 0x7f, 0xff] {
            for length in [0, 1, 50, 1000, 100_000] {
                let bytes = vec![byte; length];
                let size = written(&[("n", &bytes)]).len();
                assert!(size <= length * 2 + 100, "{length} of {byte}: {size} bytes");
                if byte != b'\n' {
                    assert!(size <= length * 4 / 3 + 100, "{length} of {byte}: {size} bytes");
                }
                assert_eq!(size, 6 + bytes_to_json(&bytes).to_string().len());
            }
        }
    }

    #[test]
    fn what_was_kept_counts_before_what_comes_now_and_stays_as_it_was_written() {
        let mut native = Native::default();
        native.value("x", json!([1]));
        native.value("y", json!(2));
        native.join("nativeheaders", r#"{"x":{"base64":"/w=="}}"#.to_owned());
        native.join("nativeheaders", "no JSON".to_owned());
        let mut other = Native::default();
        other.value("y", json!(3));
        other.value("z", json!(4));
        native.add(other);
        assert_eq!(
            native.into_json(),
            r#"{"nativeheaders":"no JSON","x":{"base64":"/w=="},"y":2,"z":4}"#
        );
    }
}
