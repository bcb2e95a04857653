//! An envelope as the body of a message: a structured event in JSON.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use anybroker_core::adapter::ServerClock;
use anybroker_core::{Envelope, Error, ErrorKind, Hop, Result, cloudevents};
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName as Name};

use crate::error::error_of;
use crate::names;
use crate::notification::Notification;

const STRUCTURED: &str = "application/cloudevents+json";

/// The largest message, and the largest batch of them, in bytes.
///
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) const SQS_BYTES: usize = 1024 * 1024;
/// <https://docs.aws.amazon.com/general/latest/gr/sns.html#limits_sns>
pub(crate) const SNS_BYTES: usize = 256 * 1024;

/// What headers, and what retry and dead-lettering add, may take beside the largest payload.
const KEPT_BACK: usize = 64 * 1024;

/// The most that a copy adds to a message as JSON writes it, but for the error of a dead letter,
/// which is cut to what is left.
const ADDED: usize = 1024;

/// How much longer a body may be when it is written again: it may tell the time of that, to the
/// nanosecond, and no zeros at its end.
const TIME: usize = ".123456789".len();

/// The largest body of a message that is published: its copies must fit too.
pub(crate) const fn largest_published(bytes: usize) -> usize {
    bytes - ADDED
}

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

/// Writes the body of a copy. The text of the error that is told in a dead letter is cut where it
/// would not fit otherwise: what was accepted can be given up, whatever the error says.
pub(crate) fn copy(envelope: &Envelope, hop: &Hop, limit: usize) -> Result<String> {
    let whole = body(envelope, hop)?;
    let over = whole.len().saturating_sub(limit);
    let Some(failure) = hop.failure.as_ref().filter(|_| over > 0) else {
        return Ok(whole);
    };
    // JSON takes at least a byte for each byte that is cut.
    let end = failure.error.len().saturating_sub(over + TIME);
    let mut hop = hop.clone();
    if let Some(failure) = &mut hop.failure {
        failure.error.truncate(failure.error.floor_char_boundary(end));
    }
    body(envelope, &hop)
}

/// Writes the body of a copy that is given up, or sent back, and has no room for what else is known of
/// it: without that, or, where it is somebody else's message, its body as it came, without the
/// attributes beside it.
///
/// # Errors
/// `TooLarge`.
pub(crate) fn bare(envelope: &Envelope, limit: usize) -> Result<String> {
    let event = body(envelope, &Hop::default())?;
    if event.len() <= limit {
        return Ok(event);
    }
    match std::str::from_utf8(&envelope.payload) {
        Ok(text) if text.len() <= limit => Ok(text.to_owned()),
        _ => Err(too_large("the message as JSON", event.len(), limit)),
    }
}

/// Refuses a body that is larger than a message may be.
pub(crate) fn too_large(what: &str, size: usize, limit: usize) -> Error {
    let text = format!(
        "{what} has {size} bytes, at most {limit} fit; store it elsewhere and send a reference"
    );
    error_of(ErrorKind::TooLarge, "publish", text)
}

/// Reads a message: a structured event, or whatever somebody else has sent.
pub(crate) fn read(
    message: &Message,
    default_type: &str,
    clock: &ServerClock,
) -> (Envelope, Option<Box<Hop>>) {
    // A part of the millisecond is cut off.
    let sent = Some(sent_at(message)).filter(|sent| *sent > 0).and_then(|ms| ms.checked_add(1));
    let sent = sent.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    let stored_at = sent.and_then(|sent| clock.local(sent));
    let body = message.body().unwrap_or_default();
    let own = message.message_attributes().filter(|attributes| !attributes.is_empty());
    let event = cloudevents::from_json_stored_at(body.as_bytes(), stored_at);
    let wrapped = event.is_err().then(|| Notification::read(body)).flatten();
    let (body, event) = match &wrapped {
        Some(wrapped) => {
            let body = &*wrapped.message;
            (body, cloudevents::from_json_stored_at(body.as_bytes(), stored_at))
        }
        None => (body, event),
    };
    let wrapped_attributes = wrapped.as_ref().map(|wrapped| &wrapped.message_attributes);
    let wrapped_attributes = wrapped_attributes.filter(|attributes| !attributes.is_empty());
    let (mut envelope, hop) = match event {
        Ok(event) if own.is_none() && wrapped_attributes.is_none() => event,
        event => {
            let mut reader = cloudevents::AttributeReader::new();
            if let Some(time) = stored_at {
                reader.stored_at(time);
            }
            for (name, value) in own.into_iter().flatten() {
                match value.binary_value() {
                    Some(bytes) if value.string_value().is_none() => {
                        reader.native_bytes(name, bytes.as_ref().to_vec());
                    }
                    _ => reader.native(name, value.string_value().into()),
                }
            }
            for (name, attribute) in wrapped_attributes.into_iter().flatten() {
                reader.native(name, (&*attribute.value).into());
            }
            let content_type = match event {
                Ok(_) => STRUCTURED,
                Err(_) if serde_json::from_str::<&serde_json::value::RawValue>(body).is_ok() => {
                    "application/json"
                }
                Err(_) => "text/plain",
            };
            let id = wrapped.as_ref().map(|wrapped| &*wrapped.message_id).or(message.message_id());
            reader.finish(default_type, id, Some(content_type), body.to_owned().into())
        }
    };
    if envelope.key.is_none() {
        let group = attribute(message, &Name::MessageGroupId);
        envelope.key = group.and_then(names::key_of_group).map(ToOwned::to_owned);
    }
    (envelope, hop)
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
    use anybroker_core::{Failure, now};
    use aws_sdk_sqs::types::MessageAttributeValue;

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
            assert_eq!(read(&message(body), "q", &ServerClock::default()).0, envelope);
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
            let (envelope, hop) = read(&foreign, "orders", &ServerClock::default());
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
        let (found, _) = read(&event, "q", &ServerClock::default());
        assert_eq!(
            (found.id, found.headers.get("nativeheaders")),
            (envelope.id, Some("{\"n\":\"7\"}"))
        );
    }

    /// Texts of what JSON writes longer than it is, and of what it does not.
    fn texts(bytes: usize) -> impl Iterator<Item = String> {
        let characters = ["a", "\"", "\\", "\n", "\u{0}", "\u{7f}", "ä", "\u{ffff}", "\u{10ffff}"];
        characters.into_iter().map(move |text| text.repeat(bytes / text.len()))
    }

    #[test]
    fn what_is_accepted_can_be_given_up_and_sent_back() {
        let headers = texts(32_674).chain(texts(44 * 1024 - 1));
        let cases = headers.zip(texts(4096).collect::<Vec<_>>().into_iter().cycle().skip(4));
        let (mut accepted, mut refused) = (0, 0);
        for (header, error) in cases {
            let envelope = Envelope::new("t", vec![0xff; max_payload(SQS_BYTES)]);
            let mut envelope = envelope.with_header("h", header).expect("a header");
            envelope.validate().expect("the library takes it");
            // What is left goes into the payload: the fullest message that is taken.
            let body_len =
                |envelope: &Envelope, hop: &Hop| body(envelope, hop).map(|body| body.len());
            let published = Hop::delayed(std::time::Duration::from_hours(1));
            let free = largest_published(SQS_BYTES)
                .checked_sub(body_len(&envelope, &published).expect("a body"));
            let Some(free) = free else {
                refused += 1;
                continue;
            };
            accepted += 1;
            let free = free.saturating_sub(TIME);
            envelope.payload = vec![0xff; envelope.payload.len() + free / 4 * 3].into();
            let size = body_len(&envelope, &published).expect("a body");
            assert!(size <= largest_published(SQS_BYTES), "{size}");
            let failure =
                Failure::new("r".repeat(64), error, "q".repeat(80), "g".repeat(64), now());
            let hop = Hop {
                id: Hop::redrive().id,
                attempts: u32::MAX,
                unsettled: u32::MAX,
                not_before: published.not_before,
                first_failure: Some(now()),
                failure: Some(Box::new(failure)),
            };
            let size = copy(&envelope, &hop, SQS_BYTES).expect("a body").len();
            assert!(size <= SQS_BYTES, "{size} bytes for {:.20?}", envelope.headers);
        }
        assert!(accepted > 0 && refused > 0, "{accepted} and {refused}");
    }

    #[test]
    fn an_error_is_cut_only_where_it_has_to() {
        let failure = Failure::new("r", "ä\"".repeat(100), "q".into(), "g".into(), now());
        let hop = Hop { failure: Some(Box::new(failure)), ..Hop::default() };
        let envelope = Envelope::new("t", "{}");
        let whole = body(&envelope, &hop).expect("a body");
        assert_eq!(copy(&envelope, &hop, whole.len()).expect("a body"), whole);
        for less in 1..500 {
            let limit = whole.len() - less;
            let cut = copy(&envelope, &hop, limit).expect("a body");
            assert!(cut.len() <= limit || less > 400, "{} of {limit}", cut.len());
            assert_eq!(read(&message(cut), "q", &ServerClock::default()).0.id, envelope.id);
        }
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
