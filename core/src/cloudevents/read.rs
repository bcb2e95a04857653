use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use super::native::Native;
use super::{attribute, json};
use crate::envelope::new_id;
use crate::{Envelope, Failure, Headers, Hop, now};

/// Reads an envelope and its hop from what came with a message, whoever sent it.
///
/// Nothing makes it fail: what is no CloudEvents attribute, or breaks the rules of the attribute
/// it claims to be, ends in the header `nativeheaders`, a JSON object: text as a string, other bytes
/// as `{"base64": "…"}`. Of two attributes of one name the first counts.
///
/// ```
/// # use anybroker_core::cloudevents::AttributeReader;
/// let mut reader = AttributeReader::new();
/// reader.attribute("type", "order.created");
/// reader.attribute("tenant", "acme");
/// let (envelope, _) = reader.finish("orders", Some("17"), None, "{}".into());
/// assert_eq!((&*envelope.r#type, &*envelope.id), ("order.created", "17"));
/// assert_eq!(envelope.headers.get("tenant"), Some("acme"));
/// ```
#[derive(Debug, Default)]
pub struct AttributeReader {
    id: Option<String>,
    r#type: Option<String>,
    source: Option<Cow<'static, str>>,
    time: Option<SystemTime>,
    version: Option<u32>,
    key: Option<String>,
    content_type: Option<Cow<'static, str>>,
    correlation_id: Option<String>,
    causation_id: Option<String>,
    expires: Option<SystemTime>,
    headers: Headers,
    headers_size: usize,
    /// The names of the headers, once they are so many that to look through them takes long.
    names: HashSet<Box<str>>,
    native: Native,
    hop: Option<Box<GatheredHop>>,
    clock: Option<SystemTime>,
    stored: Stored,
}

/// What is known of when the broker stored a message.
#[derive(Clone, Copy, Debug, Default)]
enum Stored {
    /// Nothing: the times are taken as they are written.
    #[default]
    Unknown,
    /// This, on the clock of this machine.
    At(SystemTime),
    /// Some time ago.
    Earlier,
}

/// What a message may take on its way, which is no difference of the clocks. One that seems smaller
/// leaves an expiry as it was written, and so a delay where it would become shorter, or where the
/// broker does not tell how long it had the message.
const TOLERATED: Duration = Duration::from_secs(10);

/// A clock that seems to differ by more is not believed, and the times are taken as they are
/// written: so a wrong or forged clock, or a wrong time of storing, moves them by no more than that.
const BELIEVED: Duration = Duration::from_hours(24);

/// How much longer than it is written a delay may last that counts from the arrival of a message:
/// no more than clocks may differ, however often the message arrives.
const LONGER: Duration = Duration::from_hours(1);

/// The parts of a hop, in whatever order they come; what was only published has none.
#[derive(Debug, Default)]
struct GatheredHop {
    hop: Hop,
    attempts: Option<u32>,
    unsettled: Option<u32>,
    failure: Option<GatheredFailure>,
}

#[derive(Debug, Default)]
struct GatheredFailure {
    reason: Option<String>,
    error: Option<String>,
    origin: Option<String>,
    group: Option<String>,
    at: Option<SystemTime>,
}

/// As much as an envelope may have.
const LARGEST_HEADERS: usize = 44 * 1024;

/// So many headers are looked through for one of the same name; of more, the names are kept apart, or
/// a message with ten thousand of them would take a tenth of a second.
const FEW: usize = 32;

impl AttributeReader {
    /// Makes a reader that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an attribute, whose name has lost the transport's prefix.
    pub fn attribute(&mut self, name: &str, value: &str) {
        let understood = match name {
            attribute::SPEC_VERSION => value == "1.0",
            attribute::ID => text(&mut self.id, value),
            attribute::SOURCE => known_text(&mut self.source, value, "anybroker"),
            attribute::TYPE => text(&mut self.r#type, value),
            attribute::TIME => parsed(&mut self.time, attribute::parse_time(value)),
            attribute::VERSION => {
                let version = value.parse().ok();
                self.version.get_or_insert(version.unwrap_or(0));
                version.is_some()
            }
            attribute::KEY => text(&mut self.key, value),
            attribute::CONTENT_TYPE => known_text(&mut self.content_type, value, json::MEDIA_TYPE),
            attribute::CORRELATION_ID => text(&mut self.correlation_id, value),
            attribute::CAUSATION_ID => text(&mut self.causation_id, value),
            attribute::EXPIRES => parsed(&mut self.expires, attribute::parse_time(value)),
            attribute::HOP => text(&mut self.hop().hop.id, value),
            attribute::NOT_BEFORE => {
                parsed(&mut self.hop().hop.not_before, attribute::parse_time(value))
            }
            attribute::CLOCK => parsed(&mut self.clock, attribute::parse_time(value)),
            attribute::FIRST_FAILURE => {
                parsed(&mut self.hop().hop.first_failure, attribute::parse_time(value))
            }
            attribute::ATTEMPTS => parsed(&mut self.hop().attempts, value.parse().ok()),
            attribute::UNSETTLED => parsed(&mut self.hop().unsettled, value.parse().ok()),
            attribute::REASON => first(&mut self.failure().reason, value),
            attribute::ERROR => first(&mut self.failure().error, value),
            attribute::ORIGIN => first(&mut self.failure().origin, value),
            attribute::GROUP => first(&mut self.failure().group, value),
            attribute::LAST_FAILURE => parsed(&mut self.failure().at, attribute::parse_time(value)),
            _ => self.header(name, value),
        };
        if !understood {
            self.native.bytes(name, || Bytes::copy_from_slice(value.as_bytes()));
        }
    }

    /// Says when the broker stored the message, in terms of this machine's clock. The times before
    /// which no handler sees it and from which on it is of no use count from then, also where the
    /// clock of whoever stored it differs.
    pub fn stored_at(&mut self, time: SystemTime) {
        self.stored = Stored::At(time);
    }

    /// Says that the broker does not tell when it stored the message. Where that seems to be ten
    /// seconds ago or more, the clock of whoever stored it may be behind: a delay counts from now
    /// then, since it must not end early, but ends at most an hour later than it is written. An
    /// expiry is taken as it is written.
    pub fn stored_earlier(&mut self) {
        self.stored = Stored::Earlier;
    }

    /// Reads a header that is no CloudEvents attribute.
    pub fn native(&mut self, name: &str, value: Value) {
        self.native.value(name, value);
    }

    /// Reads a header that is no CloudEvents attribute, as the bytes that came: text or not.
    pub fn native_bytes(&mut self, name: &str, bytes: impl Into<Bytes>) {
        self.native.bytes(name, || bytes.into());
    }

    /// Reads a header that is JSON already.
    pub(super) fn native_json(&mut self, name: &str, json: &RawValue) {
        self.native.json(name, json);
    }

    /// Ends the reading; what was only published has no hop.
    ///
    /// A content type that begins with `application/cloudevents` means a structured event: the
    /// payload is read as one, and its attributes count instead of those read before. If it is
    /// none, the message is delivered as it is. So it is when the attributes read before are those
    /// of another event: then the payload is an event within the event. Where both are of the same
    /// event, the attribute `datacontenttype`, which a structured event has no use for beside the
    /// payload, tells the two apart.
    ///
    /// # Defaults
    /// `id`: the transport's `message_id`, or a new one at each reading; `type`: `default_type`;
    /// `source`: `unknown`; `time`: now; `version`: 1 if there was none, 0 if it could not be
    /// read, which no message type decodes; content type: `application/json`. An empty text counts
    /// as none.
    pub fn finish(
        mut self,
        default_type: &str,
        message_id: Option<&str>,
        content_type: Option<&str>,
        mut payload: Bytes,
    ) -> (Envelope, Option<Box<Hop>>) {
        if content_type.is_some_and(json::is_structured)
            && let Ok((mut event, data)) = json::read(&payload)
            && !self.contains(&event)
        {
            event.native.add(self.native);
            event.stored = self.stored;
            (self, payload) = (event, data);
        } else if let Some(own) = content_type.filter(|text| !text.is_empty()) {
            self.content_type = None;
            known_text(&mut self.content_type, own, json::MEDIA_TYPE);
        }
        if !self.native.is_empty() {
            self.keep_native();
        }
        self.set_clock();
        let time = self.time.unwrap_or_else(now);
        let hop = self.hop.and_then(|gathered| gathered.finish(time));
        let non_empty = |id: &&str| !id.is_empty();
        let envelope = Envelope {
            id: self.id.unwrap_or_else(|| {
                message_id.filter(non_empty).map_or_else(new_id, ToOwned::to_owned)
            }),
            r#type: self.r#type.unwrap_or_else(|| default_type.to_owned()).into(),
            version: self.version.unwrap_or(1),
            source: self.source.unwrap_or(Cow::Borrowed("unknown")),
            time,
            key: self.key,
            content_type: self.content_type.unwrap_or(Cow::Borrowed(json::MEDIA_TYPE)),
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            expires: self.expires,
            headers: self.headers,
            payload,
        };
        (envelope, hop)
    }

    pub(super) fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// Whether everything came that CloudEvents requires.
    pub(super) fn is_event(&self) -> bool {
        self.id.is_some() && self.source.is_some() && self.r#type.is_some()
    }

    /// Moves the times that were written by another clock to where this one has them.
    ///
    /// A delay that counts from when the broker has the message never ends early: whatever the
    /// message took on its way makes it longer.
    fn set_clock(&mut self) {
        let Some(clock) = self.clock else { return };
        let here = now();
        let (stored_at, is_known) = match self.stored {
            Stored::Unknown => return,
            // Nothing comes before it was stored.
            Stored::At(time) => (time.min(here), true),
            Stored::Earlier => (here, false),
        };
        let (by, is_later) = match stored_at.duration_since(clock) {
            Ok(behind) => (behind, true),
            Err(ahead) => (ahead.duration(), false),
        };
        if by > BELIEVED {
            return;
        }
        let moved = |time: SystemTime, by: Duration| {
            let there = if is_later { time.checked_add(by) } else { time.checked_sub(by) };
            there.unwrap_or(time)
        };
        if let Some(due) = self.hop.as_mut().and_then(|gathered| gathered.hop.not_before.as_mut())
            && (by >= TOLERATED || (is_later && is_known))
        {
            let is_guessed = is_later && !is_known;
            *due = moved(*due, if is_guessed { by.min(LONGER) } else { by });
        }
        if let Some(expires) = self.expires.as_mut().filter(|_| is_known && by >= TOLERATED) {
            *expires = moved(*expires, by);
        }
    }

    /// Whether these attributes are those of a message whose payload is the event `inner`.
    fn contains(&self, inner: &Self) -> bool {
        let identity = |event: &Self| {
            (&event.id, &event.source, &event.r#type) == (&self.id, &self.source, &self.r#type)
        };
        let is_stated = self.content_type().is_some_and(json::is_structured);
        self.is_event() && (is_stated || !identity(inner))
    }

    fn hop(&mut self) -> &mut GatheredHop {
        self.hop.get_or_insert_default()
    }

    fn failure(&mut self) -> &mut GatheredFailure {
        self.hop().failure.get_or_insert_default()
    }

    fn header(&mut self, name: &str, value: &str) -> bool {
        let size = self.headers_size + name.len() + value.len();
        // Already read at an earlier hop, with whatever size it had: it stays what it is.
        if name != attribute::NATIVE {
            if size > LARGEST_HEADERS {
                return false;
            }
            self.headers_size = size;
        }
        if self.headers.len() < FEW {
            return self.headers.insert_first(name, value).is_ok();
        }
        if self.names.is_empty() {
            self.names.extend(self.headers.iter().map(|(name, _)| name.into()));
        }
        if self.names.contains(name) {
            return true;
        }
        let is_new = self.headers.push_new(name, value).is_ok();
        if is_new {
            self.names.insert(name.into());
        }
        is_new
    }

    /// Joins the native headers with those that an earlier hop kept.
    fn keep_native(&mut self) {
        let mut native = std::mem::take(&mut self.native);
        if let Some(kept) = self.headers.remove(attribute::NATIVE) {
            native.join(attribute::NATIVE, kept);
        }
        // The name keeps the rules of headers, so that there is no error to handle.
        let _ = self.headers.insert(attribute::NATIVE, native.into_json());
    }
}

impl GatheredHop {
    fn finish(self, time: SystemTime) -> Option<Box<Hop>> {
        let mut hop = self.hop;
        hop.attempts = self.attempts.unwrap_or(0);
        hop.unsettled = self.unsettled.unwrap_or(0);
        if let Some(failure) = self.failure {
            hop.failure = Some(Box::new(Failure::new(
                failure.reason.unwrap_or_default(),
                failure.error.unwrap_or_default(),
                failure.origin.unwrap_or_default(),
                failure.group.unwrap_or_default(),
                failure.at.or(hop.first_failure).unwrap_or(time),
            )));
        }
        (hop != Hop::default()).then(|| Box::new(hop))
    }
}

/// Sets what is not set, and answers whether the value is a text at all.
fn text(field: &mut Option<String>, value: &str) -> bool {
    !value.is_empty() && first(field, value)
}

/// As [`text`], without an allocation for the value that most messages have.
fn known_text(field: &mut Option<Cow<'static, str>>, value: &str, known: &'static str) -> bool {
    if field.is_none() && !value.is_empty() {
        let borrowed = value == known;
        *field = Some(if borrowed { Cow::Borrowed(known) } else { Cow::Owned(value.to_owned()) });
    }
    !value.is_empty()
}

fn first(field: &mut Option<String>, value: &str) -> bool {
    if field.is_none() {
        *field = Some(value.to_owned());
    }
    true
}

fn parsed<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    let understood = value.is_some();
    if field.is_none() {
        *field = value;
    }
    understood
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::cloudevents::write_attributes;

    fn read(attributes: &[(&str, &str)]) -> (Envelope, Hop) {
        let mut reader = AttributeReader::new();
        for (name, value) in attributes {
            reader.attribute(name, value);
        }
        let (envelope, hop) = reader.finish("orders", Some("17"), None, Bytes::new());
        (envelope, *hop.unwrap_or_default())
    }

    fn native(envelope: &Envelope) -> Value {
        serde_json::from_str(envelope.headers.get("nativeheaders").expect("some are native"))
            .expect("they are JSON")
    }

    #[test]
    fn a_message_without_attributes_gets_defaults() {
        let (envelope, hop) = read(&[]);
        assert_eq!((&*envelope.id, &*envelope.r#type), ("17", "orders"));
        assert_eq!((envelope.version, &*envelope.source), (1, "unknown"));
        assert_eq!(envelope.content_type, "application/json");
        assert!(now().duration_since(envelope.time).expect("not later") < Duration::from_mins(1));
        assert!(envelope.headers.is_empty());
        assert_eq!(hop, Hop::default());

        let id = || AttributeReader::new().finish("orders", None, None, Bytes::new()).0.id;
        assert_ne!(id(), id());
    }

    #[test]
    fn an_event_of_another_sdk_is_read_as_it_is() {
        let (envelope, _) = read(&[
            ("specversion", "1.0"),
            ("id", "A234-1234-1234"),
            ("source", "https://github.com/cloudevents/spec/pull"),
            ("type", "com.github.pull_request.opened"),
            ("subject", "123"),
            ("dataschema", "https://acme.example/schema"),
            ("time", "2018-04-05T19:31:00+02:00"),
            ("datacontenttype", "text/xml"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ]);
        assert_eq!(envelope.id, "A234-1234-1234");
        assert_eq!(envelope.source, "https://github.com/cloudevents/spec/pull");
        assert_eq!(envelope.content_type, "text/xml");
        assert_eq!(envelope.time, SystemTime::UNIX_EPOCH + Duration::from_mins(25_382_491));
        let headers: Vec<_> = envelope.headers.iter().map(|(name, _)| name).collect();
        assert_eq!(headers, ["subject", "dataschema", "traceparent"]);
    }

    #[test]
    fn what_breaks_a_rule_is_kept_beside_the_default() {
        let (envelope, hop) = read(&[
            ("time", "yesterday"),
            ("schemaversion", "abc"),
            ("abattempts", "-1"),
            ("id", ""),
            ("data", "d"),
            ("Tenant-Id", "acme"),
        ]);
        assert_eq!((&*envelope.id, envelope.version, hop.attempts), ("17", 0, 0));
        assert_eq!(
            native(&envelope),
            json!({
                "time": "yesterday", "schemaversion": "abc", "abattempts": "-1", "id": "",
                "data": "d", "Tenant-Id": "acme",
            })
        );
    }

    #[test]
    fn of_two_attributes_of_one_name_the_first_counts() {
        let (envelope, hop) = read(&[
            ("id", "1"),
            ("id", "2"),
            ("tenant", "acme"),
            ("tenant", "other"),
            ("abattempts", "3"),
            ("abattempts", "4"),
        ]);
        assert_eq!((&*envelope.id, hop.attempts), ("1", 3));
        assert_eq!(envelope.headers.get("tenant"), Some("acme"));
    }

    #[test]
    fn native_headers_join_those_of_earlier_hops() {
        let mut reader = AttributeReader::new();
        reader.native("x-priority", json!(2));
        reader.native("x-priority", json!(3));
        reader.native("x-retry", json!({"count": 1}));
        reader.attribute("nativeheaders", r#"{"x-retry":"kept"}"#);
        let (envelope, _) = reader.finish("orders", None, None, Bytes::new());
        assert_eq!(native(&envelope), json!({"x-priority": 2, "x-retry": "kept"}));

        let mut reader = AttributeReader::new();
        reader.native("x-priority", json!(2));
        reader.attribute("nativeheaders", "not ours");
        let (envelope, _) = reader.finish("orders", None, None, Bytes::new());
        assert_eq!(native(&envelope), json!({"x-priority": 2, "nativeheaders": "not ours"}));
    }

    #[test]
    fn more_headers_than_an_envelope_may_have_are_kept_as_native() {
        let mut reader = AttributeReader::new();
        let names: Vec<_> = (0..2000).map(|number| format!("h{number}")).collect();
        for name in &names {
            reader.attribute(name, &"x".repeat(100));
        }
        let (mut envelope, _) = reader.finish("orders", None, None, Bytes::new());
        let kept = native(&envelope).as_object().expect("an object").len();
        envelope.headers.remove("nativeheaders");
        assert_eq!(envelope.headers.len() + kept, names.len());
        envelope.validate().expect("the headers are within the limit");
    }

    #[test]
    fn thousands_of_headers_are_read_in_a_time_that_grows_as_they_do() {
        let read = |count: usize| {
            let names: Vec<_> = (0..count).map(|number| format!("{number:x}")).collect();
            let best = (0..5).map(|_| {
                let begun = std::time::Instant::now();
                let mut reader = AttributeReader::new();
                for name in names.iter().chain(&names[..99]) {
                    reader.attribute(name, "");
                }
                let (envelope, _) = reader.finish("orders", None, None, Bytes::new());
                assert_eq!(envelope.headers.len(), count);
                begun.elapsed()
            });
            best.min().expect("five tries")
        };
        let (few, many) = (read(700), read(11_200));
        // Sixteen times as many; a look through all for each would take 256 times as long.
        assert!(many < few * 80, "{few:?} for 700, {many:?} for 11,200");
    }

    #[test]
    fn bytes_that_are_no_text_take_a_third_more_than_they_are() {
        let mut reader = AttributeReader::new();
        reader.native_bytes("raw", vec![0xff; 3_000_000]);
        reader.native_bytes("raw", "another");
        let (envelope, _) = reader.finish("orders", None, None, Bytes::new());
        let kept = envelope.headers.get("nativeheaders").expect("it is kept");
        assert!(kept.len() < 4_000_100, "{} bytes", kept.len());
        assert!(kept.starts_with(r#"{"raw":{"base64":"////"#), "{kept:.40}");
        let mut reader = AttributeReader::new();
        reader.attribute("nativeheaders", kept);
        reader.native("n", json!(1));
        let again = reader.finish("orders", None, None, Bytes::new()).0;
        let again = again.headers.get("nativeheaders").expect("it is kept");
        assert_eq!(again.len(), kept.len() + r#""n":1,"#.len());
    }

    #[test]
    fn a_failure_is_read_from_any_of_its_parts() {
        let (_, hop) = read(&[("abgroup", "email"), ("abfirstfailure", "2026-01-02T03:04:05Z")]);
        let failure = hop.failure.expect("there is one");
        assert_eq!((&*failure.group, &*failure.reason, &*failure.error), ("email", "", ""));
        assert_eq!(Some(failure.at), hop.first_failure);
    }

    #[test]
    fn times_count_from_when_the_broker_stored_the_message() {
        let stored = now();
        let second = Duration::from_secs(1);
        let hour = Duration::from_hours(1);
        let little = 5 * second;
        for clock in [stored - hour, stored, stored + hour, stored - little, stored + little] {
            let hop = Hop { not_before: Some(clock + 2 * second), ..Hop::default() };
            let envelope = Envelope::new("t", "").with_expires(clock + 20 * second);
            let mut attributes = Vec::new();
            write_attributes(&envelope, &hop, |name, value| {
                attributes.push((name.to_owned(), value.to_owned()));
            });
            let place = attributes.iter().position(|(name, _)| name == "abclock");
            attributes[place.expect("it is written")].1 = attribute::timestamp(clock).to_string();
            let read = |stored: Stored| {
                let mut reader = AttributeReader { stored, ..AttributeReader::new() };
                for (name, value) in &attributes {
                    reader.attribute(name, value);
                }
                let (envelope, hop) = reader.finish("t", None, None, Bytes::new());
                (envelope.expires, hop.expect("a hop").not_before.expect("a delay"))
            };
            let (expires, due) = read(Stored::At(stored));
            let agree = clock > stored - 2 * little && clock < stored + 2 * little;
            let begun = if agree { clock.max(stored) } else { stored };
            assert_eq!(due, begun + 2 * second);
            let expected = if agree { clock } else { stored } + 20 * second;
            assert_eq!(expires, Some(expected));
            assert_eq!(read(Stored::Unknown), (envelope.expires, clock + 2 * second));
            let (expires, due) = read(Stored::Earlier);
            if agree {
                assert_eq!(due, clock + 2 * second);
            } else {
                assert!(due >= stored + 2 * second && due < stored + 60 * second);
            }
            assert_eq!(expires, envelope.expires);
        }
    }

    #[test]
    fn a_wrong_clock_changes_no_time_by_more_than_a_day() {
        let day = Duration::from_hours(24);
        let stored = now();
        let (due, expires) = (stored + Duration::from_secs(2), stored + Duration::from_secs(20));
        let near = [stored - day / 2, stored + day / 2, stored - 2 * day, stored + 2 * day];
        let near = near.map(|clock| attribute::timestamp(clock).to_string());
        let far =
            ["0000-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"];
        let garbage = ["", "now", "-1", "2026-13-45T99:00:00Z", "\u{0}"];
        let wrong = far.into_iter().chain(garbage).map(str::to_owned);
        for clock in near.into_iter().chain(wrong) {
            let epoch = SystemTime::UNIX_EPOCH;
            for at in [Stored::Unknown, Stored::Earlier, Stored::At(stored), Stored::At(epoch)] {
                let mut reader = AttributeReader { stored: at, ..AttributeReader::new() };
                reader.attribute("notbefore", &attribute::timestamp(due).to_string());
                reader.attribute("expirytime", &attribute::timestamp(expires).to_string());
                reader.attribute("abclock", &clock);
                let (envelope, hop) = reader.finish("t", None, None, Bytes::new());
                let by = |read: Option<SystemTime>, written: SystemTime| {
                    let read = read.expect("it is kept");
                    read.duration_since(written).unwrap_or_else(|by| by.duration())
                };
                assert!(by(hop.and_then(|hop| hop.not_before), due) <= day, "{clock} {at:?}");
                assert!(by(envelope.expires, expires) <= day, "{clock} {at:?}");
            }
            // What only expires, and a time of storing that no clock shows.
            let beyond = epoch.checked_add(Duration::from_secs(u64::MAX / 4));
            let mut reader = AttributeReader::new();
            reader.stored_at(beyond.unwrap_or(epoch));
            reader.attribute("abclock", &clock);
            reader.attribute("expirytime", &attribute::timestamp(expires).to_string());
            let (envelope, hop) = reader.finish("t", None, None, Bytes::new());
            let read = envelope.expires.expect("it is kept");
            let by = read.duration_since(expires).unwrap_or_else(|by| by.duration());
            assert!(by <= day && hop.is_none(), "{clock} {by:?}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_written_becomes_the_nearest_that_can() {
        let millennia = |count: u64| Duration::from_hours(24 * 365_250 * count);
        let late = SystemTime::UNIX_EPOCH + millennia(100);
        let early = SystemTime::UNIX_EPOCH - millennia(100);
        let envelope = Envelope { time: early, ..Envelope::new("t", "").with_expires(late) };
        let mut written = Vec::new();
        write_attributes(&envelope, &Hop::default(), |name, value| {
            written.push((name.to_owned(), value.to_owned()));
        });
        let value = |name| &*written.iter().find(|(known, _)| known == name).expect("written").1;
        assert_eq!(value("time"), "0000-01-01T00:00:00Z");
        assert_eq!(value("expirytime"), "9999-12-30T22:00:00.999999999Z");
        assert!(attribute::parse_time(value("time")).is_some());
        assert!(attribute::parse_time(value("expirytime")).is_some());
    }
}
