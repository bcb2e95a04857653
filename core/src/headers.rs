use std::fmt;

use crate::{Error, ErrorKind, Result};

/// Extension attributes of an envelope: names `[a-z0-9]` of at most 20 characters, values UTF-8
/// text, no name twice, none that the envelope's own fields or the library use.
///
/// ```
/// # use anybroker_core::Headers;
/// let mut headers = Headers::new();
/// headers.insert("tenant", "acme")?;
/// assert_eq!(headers.get("tenant"), Some("acme"));
/// assert!(headers.insert("Tenant-Id", "acme").is_err());
/// # Ok::<(), anybroker_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

/// Attributes that have a field of their own, or that the library writes.
pub(crate) const RESERVED: &[&str] = &[
    "id",
    "source",
    "type",
    "specversion",
    "datacontenttype",
    "data",
    "database64",
    "time",
    "schemaversion",
    "partitionkey",
    "correlationid",
    "causationid",
    "expirytime",
    "notbefore",
    "abclock",
    "abhop",
    "abattempts",
    "abunsettled",
    "abfirstfailure",
    "ablastfailure",
    "abreason",
    "aberror",
    "aborigin",
    "abgroup",
];

/// The longest name of a header, in bytes.
pub(crate) const LONGEST_NAME: usize = 20;

impl Headers {
    /// Makes an empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sets `name` to `value` and returns the value it had.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name that breaks the rules above.
    pub fn insert(&mut self, name: &str, value: impl Into<String>) -> Result<Option<String>> {
        check_name(name)?;
        let value = value.into().into_boxed_str();
        if let Some((_, slot)) = self.0.iter_mut().find(|(known, _)| &**known == name) {
            return Ok(Some(std::mem::replace(slot, value).into_string()));
        }
        self.0.push((name.into(), value));
        Ok(None)
    }

    /// Sets `name` unless it is set.
    pub(crate) fn insert_first(&mut self, name: &str, value: &str) -> Result<()> {
        check_name(name)?;
        if self.get(name).is_none() {
            self.0.push((name.into(), value.into()));
        }
        Ok(())
    }

    /// Adds `name`, which is known not to be set.
    pub(crate) fn push_new(&mut self, name: &str, value: &str) -> Result<()> {
        check_name(name)?;
        self.0.push((name.into(), value.into()));
        Ok(())
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Takes `name` out and returns the value it had.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| &**known == name)?;
        Some(self.0.remove(index).1.into_string())
    }

    /// Names and values in the order of insertion.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Order does not count: transports do not keep it.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for Headers {}

fn check_name(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > LONGEST_NAME {
        "is longer than 20 characters"
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        "may contain only a-z and 0-9, as CloudEvents attributes do"
    } else if RESERVED.contains(&name) {
        "is reserved: the envelope has a field for it, or the library writes it"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, format!("header {name:?} {problem}")))
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_lower_case_and_free() {
        let mut headers = Headers::new();
        for (name, problem) in [
            ("", "is empty"),
            ("Tenant", "may contain only"),
            ("tenant-id", "may contain only"),
            ("tenant_id", "may contain only"),
            ("mandä", "may contain only"),
            ("abcdefghijklmnopqrstu", "longer than 20"),
        ] {
            let error = headers.insert(name, "").expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(problem), "{error}");
        }
        for name in RESERVED {
            let error = headers.insert(name, "").expect_err(name).to_string();
            assert!(error.contains("is reserved"), "{error}");
        }
        for name in ["subject", "dataschema", "traceparent", "abcdefghijklmnopqrst", "0"] {
            headers.insert(name, "").expect(name);
        }
    }

    #[test]
    fn a_name_is_there_once() {
        let mut headers = Headers::new();
        assert_eq!(headers.insert("tenant", "acme").expect("a good name"), None);
        headers.insert("region", "eu").expect("a good name");
        let previous = headers.insert("tenant", "other").expect("a good name");
        assert_eq!(previous.as_deref(), Some("acme"));
        headers.insert_first("tenant", "third").expect("a good name");
        let pairs: Vec<_> = headers.iter().collect();
        assert_eq!(pairs, [("tenant", "other"), ("region", "eu")]);
        assert_eq!(format!("{headers:?}"), r#"{"tenant": "other", "region": "eu"}"#);

        assert_eq!(headers.remove("tenant").as_deref(), Some("other"));
        assert_eq!((headers.remove("tenant"), headers.get("tenant")), (None, None));
        assert_eq!((headers.len(), headers.is_empty()), (1, false));
    }
}
