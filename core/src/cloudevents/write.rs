use std::fmt::{self, Write};
use std::time::Duration;

use super::{attribute, is_structured};
use crate::{Envelope, Hop, now};

/// Writes every attribute but content type and payload: `write` gets each name, without the
/// transport's prefix, and its value. No name comes twice.
///
/// The content type of an event within the event is written too. Where it is the transport's own
/// content type as well, it says that the attributes beside the payload are the message's, and
/// that the payload is not to be taken for the message.
pub fn write_attributes(envelope: &Envelope, hop: &Hop, write: impl FnMut(&str, &str)) {
    write_attributes_held(envelope, hop, Duration::ZERO, write);
}

/// As [`write_attributes`], for a copy that the broker itself holds back for a while, and counts
/// as stored only then: its time of storing is that much later.
pub fn write_attributes_held(
    envelope: &Envelope,
    hop: &Hop,
    held: Duration,
    mut write: impl FnMut(&str, &str),
) {
    let mut text = Text::default();
    write(attribute::SPEC_VERSION, "1.0");
    write(attribute::ID, &envelope.id);
    write(attribute::SOURCE, &envelope.source);
    write(attribute::TYPE, &envelope.r#type);
    write(attribute::TIME, text.show(attribute::timestamp(envelope.time)));
    if is_structured(&envelope.content_type) {
        write(attribute::CONTENT_TYPE, &envelope.content_type);
    }
    if envelope.version != 1 {
        write(attribute::VERSION, text.show(envelope.version));
    }
    for (name, value) in [
        (attribute::KEY, &envelope.key),
        (attribute::CORRELATION_ID, &envelope.correlation_id),
        (attribute::CAUSATION_ID, &envelope.causation_id),
        (attribute::HOP, &hop.id),
    ] {
        if let Some(value) = value {
            write(name, value);
        }
    }
    for (name, time) in [
        (attribute::EXPIRES, envelope.expires),
        (attribute::NOT_BEFORE, hop.not_before),
        (attribute::FIRST_FAILURE, hop.first_failure),
    ] {
        if let Some(time) = time {
            write(name, text.show(attribute::timestamp(time)));
        }
    }
    if (envelope.expires.is_some() || hop.not_before.is_some())
        && let Some(clock) = now().checked_add(held)
    {
        write(attribute::CLOCK, text.show(attribute::timestamp(clock)));
    }
    if hop.attempts > 0 {
        write(attribute::ATTEMPTS, text.show(hop.attempts));
    }
    if hop.unsettled > 0 {
        write(attribute::UNSETTLED, text.show(hop.unsettled));
    }
    if let Some(failure) = hop.failure.as_deref() {
        write(attribute::REASON, &failure.reason);
        write(attribute::ERROR, &failure.error);
        write(attribute::ORIGIN, &failure.origin);
        write(attribute::GROUP, &failure.group);
        write(attribute::LAST_FAILURE, text.show(attribute::timestamp(failure.at)));
    }
    for (name, value) in envelope.headers.iter() {
        write(name, value);
    }
}

/// Numbers and times as text, without an allocation for each.
#[derive(Default)]
struct Text {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl Text {
    /// Longer than any `u32`, and than `9999-12-30T22:00:00.999999999Z`.
    const LONGEST: usize = 32;

    fn show(&mut self, value: impl fmt::Display) -> &str {
        self.len = 0;
        // Writing fails only beyond the length that no caller's value reaches.
        let _ = write!(self, "{value}");
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
