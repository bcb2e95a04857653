//! The names, and the form of times: what writing and reading must agree on.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

pub(super) const SPEC_VERSION: &str = "specversion";
pub(super) const ID: &str = "id";
pub(super) const SOURCE: &str = "source";
pub(super) const TYPE: &str = "type";
pub(super) const TIME: &str = "time";
pub(super) const CONTENT_TYPE: &str = "datacontenttype";
pub(super) const VERSION: &str = "schemaversion";
pub(super) const KEY: &str = "partitionkey";
pub(super) const CORRELATION_ID: &str = "correlationid";
pub(super) const CAUSATION_ID: &str = "causationid";
pub(super) const EXPIRES: &str = "expirytime";
pub(super) const HOP: &str = "abhop";
pub(super) const ATTEMPTS: &str = "abattempts";
pub(super) const NOT_BEFORE: &str = "notbefore";
pub(super) const FIRST_FAILURE: &str = "abfirstfailure";
pub(super) const LAST_FAILURE: &str = "ablastfailure";
pub(super) const REASON: &str = "abreason";
pub(super) const ERROR: &str = "aberror";
pub(super) const ORIGIN: &str = "aborigin";
pub(super) const GROUP: &str = "abgroup";
/// A header like any other, but that the reader writes it: what came with a message and is no
/// CloudEvents attribute, as one JSON object.
pub(super) const NATIVE: &str = "nativeheaders";

/// 0000-01-01T00:00:00Z, the first time that RFC 3339 can write.
const FIRST: Duration = Duration::from_hours(17_268_672);

/// The nearest time that RFC 3339 can write.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let time = match SystemTime::UNIX_EPOCH.checked_sub(FIRST) {
        Some(first) => time.max(first),
        None => time,
    };
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}

/// The time that an RFC 3339 text means.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(text.parse::<Timestamp>().ok()?).ok()
}
