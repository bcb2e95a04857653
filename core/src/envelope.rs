use std::borrow::Cow;
use std::time::SystemTime;

use bytes::Bytes;

use crate::cloudevents::is_structured;
use crate::{Error, ErrorKind, Headers, Result, now};

/// What travels: a CloudEvents 1.0 event.
///
/// [`Envelope::new`] gives an id (UUIDv7), a time and defaults; fields are set with `with_x` or
/// directly. The rules are checked once, when it is published: see [`validate`](Self::validate).
///
/// ```
/// # use anybroker_core::Envelope;
/// let envelope = Envelope::new("order.created", r#"{"id":7}"#).with_key("7");
/// assert_eq!(envelope.version, 1);
/// envelope.validate()?;
/// # Ok::<(), anybroker_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Identifies the message together with `source`: 1 to 255 bytes, UUIDv7 unless given.
    pub id: String,
    /// What kind of message it is (`order.created`): 1 to 255 bytes.
    pub r#type: Cow<'static, str>,
    /// Version of the payload's schema, from 1.
    pub version: u32,
    /// Who made it, a URI reference: 1 to 1024 bytes, `anybroker` unless given.
    pub source: Cow<'static, str>,
    /// When it was made.
    pub time: SystemTime,
    /// Ordering key: 1 to 255 bytes.
    pub key: Option<String>,
    /// Media type of the payload: 1 to 255 bytes of visible ASCII, `application/json` unless given.
    pub content_type: Cow<'static, str>,
    /// Id of the conversation it belongs to: 1 to 255 bytes.
    pub correlation_id: Option<String>,
    /// Id of the message that led to it: 1 to 255 bytes.
    pub causation_id: Option<String>,
    /// From when on it is of no use.
    pub expires: Option<SystemTime>,
    /// Extension attributes, names and values together at most 44 KiB.
    pub headers: Headers,
    /// The payload, opaque to the library.
    pub payload: Bytes,
}

impl Envelope {
    /// Makes an envelope of a type, with a new id, the current time and defaults.
    pub fn new(r#type: impl Into<Cow<'static, str>>, payload: impl Into<Bytes>) -> Self {
        Self {
            id: new_id(),
            r#type: r#type.into(),
            version: 1,
            source: Cow::Borrowed("anybroker"),
            time: now(),
            key: None,
            content_type: Cow::Borrowed("application/json"),
            correlation_id: None,
            causation_id: None,
            expires: None,
            headers: Headers::new(),
            payload: payload.into(),
        }
    }

    /// Sets the id.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the version of the payload's schema.
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets who made it.
    pub fn with_source(mut self, source: impl Into<Cow<'static, str>>) -> Self {
        self.source = source.into();
        self
    }

    /// Sets the ordering key.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the media type of the payload.
    pub fn with_content_type(mut self, content_type: impl Into<Cow<'static, str>>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Sets the conversation it belongs to.
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets the message that led to it.
    pub fn with_causation_id(mut self, id: impl Into<String>) -> Self {
        self.causation_id = Some(id.into());
        self
    }

    /// Sets from when on it is of no use.
    pub fn with_expires(mut self, expires: SystemTime) -> Self {
        self.expires = Some(expires);
        self
    }

    /// Sets a header.
    ///
    /// # Errors
    /// As [`Headers::insert`].
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Result<Self> {
        self.headers.insert(name, value)?;
        Ok(self)
    }

    /// Whether it is of no use any more.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= now())
    }

    /// Checks the limits that the fields' documentation states.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the field.
    pub fn validate(&self) -> Result<()> {
        // 255 bytes is the longest text that every broker takes as a name or property.
        text("id", &self.id, 255)?;
        text("type", &self.r#type, 255)?;
        text("source", &self.source, 1024)?;
        text("content type", &self.content_type, 255)?;
        for (what, value) in [
            ("key", &self.key),
            ("correlation id", &self.correlation_id),
            ("causation id", &self.causation_id),
        ] {
            if let Some(value) = value {
                text(what, value, 255)?;
            }
        }
        if !self.content_type.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(invalid("content type has characters outside visible ASCII"));
        }
        if is_structured(&self.content_type) {
            return Err(invalid(
                "content type begins with application/cloudevents, which says that the payload \
                 holds the envelope itself: name the payload's own type",
            ));
        }
        if self.version == 0 {
            return Err(invalid("version is 0; versions begin at 1"));
        }
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers > 44 * 1024 {
            return Err(invalid(format!(
                "headers take {headers} bytes; keep them below 44 KiB and put the rest in the payload"
            )));
        }
        Ok(())
    }
}

/// A new unique id (UUIDv7), as text.
pub(crate) fn new_id() -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    // A generator in the thread, seeded by the system: a call to the kernel for each message would
    // cost more than the rest of publishing to memory.
    let random = fastrand::u128(..).to_le_bytes();
    let random = *random.first_chunk().unwrap_or(&[0; 10]);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
    id.hyphenated().to_string()
}

fn text(what: &str, value: &str, limit: usize) -> Result<()> {
    if value.is_empty() {
        return Err(invalid(format!("{what} is empty")));
    }
    if value.len() > limit {
        return Err(invalid(format!(
            "{what} has {} bytes; at most {limit} are allowed",
            value.len()
        )));
    }
    Ok(())
}

fn invalid(context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, context).operation("validate envelope")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn envelope() -> Envelope {
        Envelope::new("order.created", "{}")
    }

    #[test]
    fn a_new_envelope_has_defaults_and_its_own_id() {
        let envelope = envelope();
        envelope.validate().expect("the defaults are valid");
        assert_eq!((envelope.version, &*envelope.source), (1, "anybroker"));
        assert_eq!(envelope.content_type, "application/json");
        assert_eq!(uuid::Uuid::parse_str(&envelope.id).expect("a UUID").get_version_num(), 7);
        assert_ne!(envelope.id, super::tests::envelope().id);
    }

    #[test]
    fn texts_are_neither_empty_nor_too_long() {
        type With = fn(Envelope, String) -> Envelope;
        let fields: [(&str, usize, With); 7] = [
            ("id", 255, |envelope, text| envelope.with_id(text)),
            ("type", 255, |envelope, text| Envelope { r#type: text.into(), ..envelope }),
            ("source", 1024, |envelope, text| envelope.with_source(text)),
            ("content type", 255, |envelope, text| envelope.with_content_type(text)),
            ("key", 255, |envelope, text| envelope.with_key(text)),
            ("correlation id", 255, |envelope, text| envelope.with_correlation_id(text)),
            ("causation id", 255, |envelope, text| envelope.with_causation_id(text)),
        ];
        for (name, limit, with) in fields {
            with(envelope(), "a".repeat(limit)).validate().expect(name);
            for text in [String::new(), "a".repeat(limit + 1)] {
                let error = with(envelope(), text).validate().expect_err(name);
                assert_eq!(error.kind(), ErrorKind::Invalid);
                assert!(error.to_string().contains(&format!(": {name} ")), "{error}");
            }
        }
    }

    #[test]
    fn a_content_type_is_visible_ascii_and_of_the_payload() {
        for content_type in ["text/plain; charset=utf-8", "anything"] {
            envelope().with_content_type(content_type).validate().expect(content_type);
        }
        for content_type in
            ["text/plain\n", "täxt", "application/cloudevents+json", "Application/CloudEvents"]
        {
            let error = envelope().with_content_type(content_type).validate();
            assert!(error.expect_err(content_type).to_string().contains("content type"));
        }
    }

    #[test]
    fn versions_begin_at_1() {
        assert!(envelope().with_version(0).validate().is_err());
        envelope().with_version(u32::MAX).validate().expect("any other version");
    }

    #[test]
    fn headers_take_at_most_44_kib() {
        let with = |size| envelope().with_header("h", "x".repeat(size)).expect("a good name");
        with(44 * 1024 - 1).validate().expect("44 KiB with the name");
        let error = with(44 * 1024).validate().expect_err("one byte more").to_string();
        assert!(error.contains("45057 bytes"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_expires_at_its_time() {
        assert!(!envelope().is_expired());
        assert!(envelope().with_expires(now() - Duration::from_secs(1)).is_expired());
        let envelope = envelope().with_expires(now() + Duration::from_mins(1));
        assert!(!envelope.is_expired());
        tokio::time::advance(Duration::from_mins(2)).await;
        assert!(envelope.is_expired());
    }
}
