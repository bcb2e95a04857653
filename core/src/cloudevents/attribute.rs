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
pub(super) const UNSETTLED: &str = "abunsettled";
pub(super) const NOT_BEFORE: &str = "notbefore";
/// What the clock of whoever stored the message showed when it did.
pub(super) const CLOCK: &str = "abclock";
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

/// How long the months are; the calendar knows when there is a 29 February.
const DAYS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

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
    let written = || SystemTime::try_from(text.parse::<Timestamp>().ok()?).ok();
    parse_written(text.as_bytes()).or_else(written)
}

/// Reads the form that is written here, as `2026-01-02T03:04:05.678Z`, since every message has one;
/// leaves all others, and what may be no date, to the calendar.
fn parse_written(text: &[u8]) -> Option<SystemTime> {
    let (clock, fraction) = text.strip_suffix(b"Z")?.split_at_checked(19)?;
    let separators = [4, 7, 10, 13, 16].map(|place| clock[place]);
    let digits = fraction.strip_prefix(b".")?;
    if separators != *b"--T::" || !(1..=9).contains(&digits.len()) {
        return None;
    }
    let [year, month, day] = [number(&clock[..4])?, number(&clock[5..7])?, number(&clock[8..10])?];
    let [hour, minute, second] =
        [number(&clock[11..13])?, number(&clock[14..16])?, number(&clock[17..])?];
    let nanos = number(digits)? * 10_u32.pow(9 - u32::try_from(digits.len()).ok()?);
    let last = *DAYS.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    let is_date = (1970..9999).contains(&year) && (1..=last).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years that begin in March have their leap day at their end.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = years / 4 - years / 100 + years / 400;
    let days = 365 * years + leap_days + (153 * months + 2) / 5 + day - 719_469;
    let seconds = u64::from(days) * 86_400 + u64::from(hour * 3600 + minute * 60 + second);
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

fn number(digits: &[u8]) -> Option<u32> {
    let next = |value: u32, digit: &u8| {
        digit.is_ascii_digit().then(|| value * 10 + u32::from(digit - b'0'))
    };
    digits.iter().try_fold(0, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_calendar_has_them() {
        let since = |text: &str| parse_written(text.as_bytes());
        let calendar = |text: &str| SystemTime::try_from(text.parse::<Timestamp>().ok()?).ok();
        for year in (1970..2110).chain([2400, 9998]) {
            for (month, day) in [(1, 1), (1, 31), (2, 28), (3, 1), (4, 30), (6, 15), (12, 31)] {
                let text = format!("{year:04}-{month:02}-{day:02}T23:09:58.0123Z");
                assert_eq!(since(&text), calendar(&text), "{text}");
                assert!(since(&text).is_some(), "{text}");
            }
        }
        for other in [
            "9999-12-31T23:59:59.5Z",
            "1969-12-28T23:59:59.5Z",
            "2024-02-29T00:00:00.1Z",
            "2026-02-29T00:00:00.1Z",
            "2026-04-31T00:00:00.1Z",
            "2026-00-01T00:00:00.1Z",
            "2026-13-01T00:00:00.1Z",
            "2026-01-00T00:00:00.1Z",
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T24:04:05.1Z",
            "2026-01-02T03:04:60.1Z",
            "2026-01-02T03:04:05.1234567890Z",
            "2026-01-02T03:04:05.+1Z",
            "2026-01-02t03:04:05.1z",
            "2026-01-02T03:04:05.1+02:00",
            "é026-01-02T03:04:05.1Z",
        ] {
            assert_eq!((since(other), parse_time(other)), (None, calendar(other)), "{other}");
        }
    }
}
