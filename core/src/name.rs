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
    // A group and a prefix are the library's own, so that there is none outside the rules.
    let hint = match what {
        "group" | "prefix" => "",
        _ => "; an existing name outside these rules is reached with `native`",
    };
    Err(Error::new(ErrorKind::Invalid, format!("{what} name {name:?} {problem}{hint}")))
}

/// A native name is the broker's matter, but no broker has one that is empty, and clients written in
/// C end at a NUL.
pub(crate) fn check_native(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.contains('\0') {
        let text = format!("native {what} name {name:?} is empty or contains NUL");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_names_are_whatever_is_a_name() {
        for name in ["a_b", "--", " ", "größe", "a.fifo"] {
            check_native("queue", name).expect(name);
        }
        for name in ["", "\0", "a\0b"] {
            check_native("queue", name).expect_err(name);
        }
    }

    #[test]
    fn portable_names_are_letters_digits_dots_and_single_dashes() {
        for name in ["a", "Z9", "order.created", "a-b", "a.-b", "a..b", "fifo", "a.fifo.b"] {
            check("queue", name).expect(name);
        }
        check("queue", &"a".repeat(LONGEST)).expect("it is as long as it may be");
    }

    #[test]
    fn any_other_name_is_refused_with_the_rule_it_breaks() {
        for (name, problem) in [
            ("", "is empty"),
            (&*"a".repeat(LONGEST + 1), "is longer than 64 bytes"),
            ("a--b", "contains `--`"),
            ("a---b", "contains `--`"),
            ("a_b", "may contain only"),
            ("a b", "may contain only"),
            ("a/b", "may contain only"),
            ("ä", "may contain only"),
            ("a\n", "may contain only"),
            ("-a", "may not begin or end"),
            ("a-", "may not begin or end"),
            (".a", "may not begin or end"),
            ("a.", "may not begin or end"),
            (".", "may not begin or end"),
            ("a.fifo", "may not end with `.fifo`"),
        ] {
            let error = check("queue", name).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let text = error.to_string();
            assert!(text.contains(problem) && text.contains("`native`"), "{text}");
        }
        let error = check("group", "a_b").expect_err("it has an underscore").to_string();
        assert!(!error.contains("native"), "{error}");
    }
}
