use std::borrow::Cow;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

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
    /// Identifies the message together with `source`: 1 to 256 bytes, UUIDv7 unless given.
    pub id: String,
    /// What kind of message it is (`order.created`): 1 to 256 bytes.
    pub r#type: Cow<'static, str>,
    /// Version of the payload's schema, from 1.
    pub version: u32,
    /// Who made it, a URI reference: 1 to 1024 bytes, `anybroker` unless given.
    pub source: Cow<'static, str>,
    /// When it was made.
    pub time: SystemTime,
    /// Ordering key: 1 to 256 bytes.
    pub key: Option<String>,
    /// Media type of the payload: 1 to 256 bytes of visible ASCII, `application/json` unless given.
    pub content_type: Cow<'static, str>,
    /// Id of the conversation it belongs to: 1 to 256 bytes.
    pub correlation_id: Option<String>,
    /// Id of the message that led to it: 1 to 256 bytes.
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
        text("id", &self.id, 256)?;
        text("type", &self.r#type, 256)?;
        text("source", &self.source, 1024)?;
        text("content type", &self.content_type, 256)?;
        for (what, value) in [
            ("key", &self.key),
            ("correlation id", &self.correlation_id),
            ("causation id", &self.causation_id),
        ] {
            if let Some(value) = value {
                text(what, value, 256)?;
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
    Uuid::now_v7().hyphenated().to_string()
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
