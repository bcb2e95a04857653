use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::{Error, ErrorKind, Result};

/// A broker's URL, taken apart: `scheme://user:password@host:port,host:port/path?option=value`.
///
/// The password shows in no output. Options are taken one by one; what is left over is an error
/// that names the nearest known one, or lists them.
///
/// ```
/// # use anybroker_core::BrokerUrl;
/// let mut url: BrokerUrl = "mine://app:secret@mq.local/%2F?prefix=dev".parse()?;
/// assert_eq!(url.hosts(5672)?, [("mq.local".to_owned(), 5672)]);
/// assert_eq!(url.option::<String>("prefix", "a name such as dev")?.as_deref(), Some("dev"));
/// url.finish()?;
/// assert!(!format!("{url:?}").contains("secret"));
/// # Ok::<(), anybroker_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<(String, Option<u16>)>,
    path: String,
    options: Vec<(String, String)>,
    /// The names that were asked for.
    known: Vec<String>,
}

/// Who creates what is used: the option `declare`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declare {
    /// The library creates what is missing.
    #[default]
    Create,
    /// The library checks that it is there, and creates nothing.
    Verify,
    /// The library assumes that it is there.
    Off,
}

impl BrokerUrl {
    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user, decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, decoded. Keep it out of every output.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Hosts and ports; an IPv6 address is without its brackets.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the URL names no host.
    pub fn hosts(&self, default_port: u16) -> Result<Vec<(String, u16)>> {
        if self.hosts.is_empty() {
            return Err(config(format!(
                "the URL names no host: write {}://host:{default_port}",
                self.scheme
            )));
        }
        let with_port =
            |(host, port): &(String, Option<u16>)| (host.clone(), port.unwrap_or(default_port));
        Ok(self.hosts.iter().map(with_port).collect())
    }

    /// What stands between host and `?`, without the first slash, decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Takes an option out and parses it; `expected` says in the error what to write.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value does not parse.
    pub fn option<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>> {
        self.known.push(name.to_owned());
        let Some(index) = self.options.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, value) = self.options.remove(index);
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(not_understood(name, &value, expected)),
        }
    }

    /// Takes an option out that is a time: `500ms`, `30s`, `5m` or `2h`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the value does not parse.
    pub fn duration(&mut self, name: &str) -> Result<Option<Duration>> {
        let time = self.option::<Time>(name, "a time such as 500ms, 30s, 5m or 2h")?;
        Ok(time.map(|Time(duration)| duration))
    }

    /// Takes an option out that is one of a few words, and answers what the word stands for.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for another word, with those that are known.
    pub fn choice<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let mut expected = String::new();
        for (index, (word, _)) in words.iter().enumerate() {
            let comma = match words.len() - index {
                _ if index == 0 => "",
                1 => " or ",
                _ => ", ",
            };
            expected = expected + comma + word;
        }
        let Some(given) = self.option::<String>(name, &expected)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == given) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(not_understood(name, &given, &expected)),
        }
    }

    /// Takes the option `declare` out.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is not one of `create`, `verify` and `off`.
    pub fn declare(&mut self) -> Result<Option<Declare>> {
        let words =
            [("create", Declare::Create), ("verify", Declare::Verify), ("off", Declare::Off)];
        self.choice("declare", &words)
    }

    /// Ends the reading of options: those that were asked for are the known ones.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an option that was not taken, naming the nearest known one.
    pub fn finish(&self) -> Result<()> {
        let (Some((name, _)), known) = (self.options.first(), &self.known) else { return Ok(()) };
        if known.contains(name) {
            return Err(config(format!("option {name:?} is given twice")));
        }
        let hint = match known.iter().find(|known| is_near(known, name)) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.is_empty() => "there are none".to_owned(),
            None => format!("known are {}", known.join(", ")),
        };
        Err(config(format!("unknown option {name:?} for {}://: {hint}", self.scheme)))
    }
}

/// One edit (or one swap) apart, or a different way to join the words.
fn is_near(known: &str, given: &str) -> bool {
    let squeeze = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let (known, given) = (squeeze(known), squeeze(given));
    if known == given || known.starts_with(&given) || given.starts_with(&known) {
        return true;
    }
    let prefix = known.bytes().zip(given.bytes()).take_while(|(a, b)| a == b).count();
    let (rest_known, rest_given) = (&known.as_bytes()[prefix..], &given.as_bytes()[prefix..]);
    let suffix =
        rest_known.iter().rev().zip(rest_given.iter().rev()).take_while(|(a, b)| a == b).count();
    rest_known.len().max(rest_given.len()) - suffix <= 2
}

struct Time(Duration);

impl FromStr for Time {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(drop)?;
        let duration = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            _ => None,
        };
        duration.map(Time).ok_or(())
    }
}

impl FromStr for BrokerUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://").filter(|(name, _)| is_scheme(name))
        else {
            return Err(config("the URL has no scheme: write for example memory://"));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // What stands before this `@` may be a password: it must not become a host, a path or an
        // option, all of which show in errors.
        if path.contains('@') || query.contains('@') {
            return Err(config(ESCAPES));
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let (user, password) =
            match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
                Some((user, password)) => (non_empty(decode(user)?), non_empty(decode(password)?)),
                None => (None, None),
            };
        let mut options = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                config(format!("option {pair:?} has no value: write {pair}=value"))
            })?;
            options.push((decode(name)?, decode(value)?));
        }
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(host_and_port);
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts: hosts.collect::<Result<_>>()?,
            path: decode(path)?,
            options,
            known: Vec::new(),
        })
    }
}

const ESCAPES: &str = "the host or its port is not understood: write host:port, with an IPv6 \
    address in brackets; in user and password write : as %3A, / as %2F, ? as %3F, and @ as %40 \
    everywhere but before the host";

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'))
}

/// The text is in no error: a part of a password ends up here when `/` or `?` is not escaped.
fn host_and_port(text: &str) -> Result<(String, Option<u16>)> {
    // An IPv6 address stands in brackets, since it is made of colons itself.
    let (host, rest) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some(parts) => parts,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(config(ESCAPES)),
        Some(port) => {
            Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(|| config(ESCAPES))?)
        }
    };
    if host.is_empty() {
        return Err(config(ESCAPES));
    }
    Ok((decode(host)?, port))
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| config("a percent-encoded part of the URL is not UTF-8"))
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn not_understood(name: &str, value: &str, expected: &str) -> Error {
    config(format!("option {name}={value} is not understood: write {expected}"))
}

fn config(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, context).operation("connect")
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if host.contains(':') {
                write!(f, "{comma}[{host}]")?;
            } else {
                write!(f, "{comma}{host}")?;
            }
            if let Some(port) = port {
                write!(f, ":{port}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BrokerUrl").field(&self.to_string()).finish()
    }
}

#[cfg(test)]
mod tests;
