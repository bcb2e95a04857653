//! Names that mean the same on every broker.

use crate::{Error, ErrorKind, Result};

/// Joins the parts of a derived name (`order.created--email--dlq`).
///
/// No portable name contains `--`, so that no two derived names meet.
pub(crate) const SEPARATOR: &str = "--";

/// Prefix, destination and group together, so that the derived name with its suffix still fits the
/// 80 characters of the narrowest broker.
pub(crate) const LONGEST: usize = 64;

pub(crate) fn check(what: &str, name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > LONGEST {
        "is longer than 64 bytes"
    } else if name.contains(SEPARATOR) {
        "contains `--`, which joins the parts of derived names"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-') {
        "may contain only letters, digits, `.` and single `-`"
    } else if name.starts_with(['.', '-']) || name.ends_with(['.', '-']) {
        "may not begin or end with `.` or `-`"
    } else if name.strip_suffix(".fifo").is_some() {
        "may not end with `.fifo`, which the shape of the queue decides"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "{what} name {name:?} {problem}; an existing name outside these rules is reached with `native`"
        ),
    ))
}
