//! An envelope as the body of a message: a structured event in JSON.

use std::collections::HashMap;

use anybroker_core::{Envelope, Error, ErrorKind, Hop, Result, cloudevents};
use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName as Name};
use serde_json::Value;

use crate::error::error_of;
use crate::names;

const STRUCTURED: &str = "application/cloudevents+json";

/// The largest message, and the largest batch of them, in bytes.
///
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) const SQS_BYTES: usize = 1024 * 1024;
/// <https://docs.aws.amazon.com/general/latest/gr/sns.html#limits_sns>
pub(crate) const SNS_BYTES: usize = 256 * 1024;

/// What retry and dead-lettering may add.
const KEPT_BACK: usize = 64 * 1024;

/// The largest payload that fits: in base64, since not every payload is JSON.
pub(crate) const fn max_payload(bytes: usize) -> usize {
    (bytes - KEPT_BACK) / 4 * 3
}

/// The system attributes that are read.
pub(crate) const READ: [Name; 3] =
    [Name::ApproximateReceiveCount, Name::MessageGroupId, Name::SentTimestamp];

/// Writes the body.
pub(crate) fn body(envelope: &Envelope, hop: &Hop) -> Result<String> {
    let json = String::from_utf8(cloudevents::to_json(envelope, hop))
        .map_err(|_| error_of(ErrorKind::Invalid, "publish", "the payload's JSON is not UTF-8"))?;
    // The two characters that JSON may hold as they are and XML, which SQS goes by, may not. They
    // can only stand inside of texts, and no payload has them: core writes it in base64 then.
    if json.contains('\u{fffe}') || json.contains('\u{ffff}') {
        return Ok(json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff"));
    }
    Ok(json)
}

/// Refuses a body that is larger than a message may be.
pub(crate) fn too_large(what: &str, size: usize, limit: usize) -> Error {
    let text = format!(
        "{what} has {size} bytes, at most {limit} fit; store it elsewhere and send a reference"
    );
    error_of(ErrorKind::TooLarge, "publish", text)
}

/// Reads a message: a structured event, or whatever somebody else has sent.
pub(crate) fn read(message: &Message, default_type: &str) -> (Envelope, Option<Box<Hop>>) {
    let body = message.body().unwrap_or_default();
    let own = message.message_attributes().filter(|attributes| !attributes.is_empty());
    let event = cloudevents::from_json(body.as_bytes());
    let (mut envelope, hop) = match (event, own) {
        (Ok(event), None) => event,
        (event, own) => {
            let mut reader = cloudevents::AttributeReader::new();
            for (name, value) in own.into_iter().flatten() {
                reader.native(name, native(value));
            }
            let content_type = match event {
                Ok(_) => STRUCTURED,
                Err(_) if serde_json::from_str::<&serde_json::value::RawValue>(body).is_ok() => {
                    "application/json"
                }
                Err(_) => "text/plain",
            };
            let id = message.message_id();
            reader.finish(default_type, id, Some(content_type), body.to_owned().into())
        }
    };
    if envelope.key.is_none() {
        let group = attribute(message, &Name::MessageGroupId);
        envelope.key = group.and_then(names::key_of_group).map(ToOwned::to_owned);
    }
    (envelope, hop)
}

fn native(value: &MessageAttributeValue) -> Value {
    match (value.string_value(), value.binary_value()) {
        (Some(text), _) => text.into(),
        // As JSON has no bytes: their values.
        (None, Some(bytes)) => bytes.as_ref().to_vec().into(),
        (None, None) => Value::Null,
    }
}

/// A system attribute.
pub(crate) fn attribute<'a>(message: &'a Message, name: &Name) -> Option<&'a str> {
    message.attributes().and_then(|all: &HashMap<_, _>| all.get(name)).map(String::as_str)
}

/// How often it was received, this time included.
pub(crate) fn receive_count(message: &Message) -> u32 {
    let count = attribute(message, &Name::ApproximateReceiveCount);
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// When the server stored it, in milliseconds since 1970.
pub(crate) fn sent_at(message: &Message) -> u64 {
    let sent = attribute(message, &Name::SentTimestamp);
    sent.and_then(|sent| sent.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: impl Into<String>) -> Message {
        Message::builder().message_id("42").body(body).build()
    }

    #[test]
    fn what_xml_cannot_carry_is_escaped_and_comes_back() {
        let text = "\u{0}\u{1f}\u{fffe}\u{ffff}\r\n\u{10ffff}";
        for payload in [format!("{:?}", "a\u{ffff}"), text.to_owned(), "{\"a\":1}".to_owned()] {
            let envelope = Envelope::new("t", payload).with_header("note", text).expect("a header");
            let body = body(&envelope, &Hop::default()).expect("a body");
            assert!(
                body.chars().all(|c| c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}')),
                "{body}"
            );
            assert_eq!(read(&message(body), "q").0, envelope);
        }
    }

    #[test]
    fn a_message_of_somebody_else_is_delivered_as_it_is() {
        let value = MessageAttributeValue::builder().data_type("String").string_value("acme");
        let value = value.build().expect("it has a type");
        for (text, content_type) in [("{\"order\":7}", "application/json"), ("hello", "text/plain")]
        {
            let mut foreign = message(text);
            foreign.message_attributes = Some([("Tenant".to_owned(), value.clone())].into());
            foreign.attributes = Some([(Name::MessageGroupId, "customer-7".to_owned())].into());
            let (envelope, hop) = read(&foreign, "orders");
            assert_eq!((&*envelope.r#type, &*envelope.id), ("orders", "42"));
            assert_eq!(envelope.payload, text.as_bytes());
            assert_eq!(envelope.content_type, content_type);
            assert_eq!(envelope.key.as_deref(), Some("customer-7"));
            assert_eq!(envelope.headers.get("nativeheaders"), Some("{\"Tenant\":\"acme\"}"));
            assert_eq!(hop, None);
        }
    }

    #[test]
    fn an_event_keeps_the_attributes_that_stand_beside_it() {
        let envelope = Envelope::new("t", "{}");
        let mut event = message(body(&envelope, &Hop::default()).expect("a body"));
        let value = MessageAttributeValue::builder().data_type("Number").string_value("7");
        event.message_attributes =
            Some([("n".to_owned(), value.build().expect("it has a type"))].into());
        let (found, _) = read(&event, "q");
        assert_eq!(
            (found.id, found.headers.get("nativeheaders")),
            (envelope.id, Some("{\"n\":\"7\"}"))
        );
    }

    #[test]
    fn the_largest_payload_fits_with_what_comes_beside_it() {
        for bytes in [SQS_BYTES, SNS_BYTES] {
            let envelope = Envelope::new("t", vec![0xff; max_payload(bytes)]);
            let size = body(&envelope, &Hop::default()).expect("a body").len();
            assert!(size > bytes - KEPT_BACK && size < bytes - KEPT_BACK / 2, "{size}");
        }
    }
}
