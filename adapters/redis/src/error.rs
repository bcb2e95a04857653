//! What the client's errors mean to an application: the one mapping.

use std::borrow::Cow;

use anybroker_core::{Error, ErrorKind, RetryClass};
use redis::{RedisError, ServerErrorKind};

pub(crate) const BROKER: &str = "redis";

/// Maps an error of the client; `what` says what was tried.
pub(crate) fn failed(operation: &'static str, what: &str, error: RedisError) -> Error {
    let (kind, advice) = meaning(&error);
    let text = match (error.code(), error.detail()) {
        // What the server says of a login may repeat it.
        (Some(code), Some(detail)) if kind != ErrorKind::Denied => {
            format!("{what}: {code} {detail}{advice}")
        }
        (None, Some(detail)) if error.kind() == redis::ErrorKind::InvalidClientConfig => {
            format!("{what}{advice} ({detail})")
        }
        // It names the certificate that is wrong, or the host that it is not for.
        _ if is_of_tls(&error) => format!("{what}: {error}{advice}"),
        _ => format!("{what}{advice}"),
    };
    let mapped = error_of(kind, operation, text);
    if kind == ErrorKind::Denied { mapped } else { mapped.with_source(error) }
}

/// As [`failed`], for a command that may have been carried out although no answer came.
pub(crate) fn unanswered(operation: &'static str, what: &str, error: RedisError) -> Error {
    let refused = is_answer(&error);
    let error = failed(operation, what, error);
    if refused { error } else { error.class(RetryClass::Ambiguous) }
}

/// What a script says of one of the entries that it was called with.
pub(crate) fn refused(operation: &'static str, what: &str, text: String) -> Error {
    let kind = redis::ErrorKind::Server(ServerErrorKind::ResponseError);
    failed(operation, what, (kind, "", text).into())
}

pub(crate) fn error_of(
    kind: ErrorKind,
    operation: &'static str,
    text: impl Into<Cow<'static, str>>,
) -> Error {
    Error::new(kind, text).broker(BROKER).operation(operation)
}

pub(crate) fn closed(operation: &'static str) -> Error {
    error_of(ErrorKind::Closed, operation, "the broker was closed: connect again")
}

pub(crate) fn stale(text: &'static str) -> Error {
    error_of(ErrorKind::StaleDelivery, "settle", text)
}

/// Whether the server answered, so that the command was refused.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// Whether the server is a replica, now or all along: it answers, and never does anything.
pub(crate) fn is_replica(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        redis::ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    ) || error.detail().is_some_and(|text| text.contains("READONLY"))
}

fn meaning(error: &RedisError) -> (ErrorKind, &'static str) {
    use redis::ErrorKind as Native;
    const LOGIN: &str = ": the server refused the login; check user and password in the URL";
    match error.kind() {
        Native::AuthenticationFailed => (ErrorKind::Denied, LOGIN),
        Native::InvalidClientConfig => (
            ErrorKind::Config,
            ": the settings cannot work; check that cert and key belong together",
        ),
        Native::Server(kind) => match kind {
            ServerErrorKind::NoPerm => {
                (ErrorKind::Denied, ": the user lacks the right; see the permissions in the docs")
            }
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly => (ErrorKind::Unavailable, ""),
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot => {
                (ErrorKind::Unsupported, ": connect to the node that has this destination's slot")
            }
            ServerErrorKind::ResponseError => by_text(error.detail().unwrap_or_default()),
            _ => (ErrorKind::Broker, ""),
        },
        Native::Extension => by_code(error.code().unwrap_or_default()),
        Native::Parse => (
            ErrorKind::Unavailable,
            ": the peer speaks no Redis; write rediss:// where it wants TLS",
        ),
        Native::Io if error.is_connection_refusal() => {
            (ErrorKind::Unavailable, ": nothing listens there; check host and port")
        }
        Native::Io if is_of_tls(error) => (ErrorKind::Config, advice_on_tls(error)),
        Native::Io => (ErrorKind::Unavailable, ": the connection is gone"),
        _ => (ErrorKind::Broker, ""),
    }
}

/// Whether the two ends do not agree on TLS, by what rustls writes; trying again does not help.
pub(crate) fn is_of_tls(error: &RedisError) -> bool {
    const SIGNS: [&str; 3] = ["invalid peer certificate", "fatal alert", "corrupt message"];
    let text = error.to_string();
    error.kind() == redis::ErrorKind::Io
        && SIGNS.iter().any(|sign| text.contains(sign))
        && !text.contains("InternalError")
}

fn advice_on_tls(error: &RedisError) -> &'static str {
    let text = error.to_string();
    if text.contains("corrupt message") {
        "; the port speaks no TLS: write redis://"
    } else if text.contains("CertificateRequired") {
        "; the server wants a certificate of the client's: set cert and key"
    } else if text.contains("fatal alert") {
        "; the server refuses the client's certificate: check the certificates of cert and key"
    } else {
        "; check the certificates: the server's, and the authority in ca"
    }
}

fn by_code(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "NOAUTH" | "WRONGPASS" => (
            ErrorKind::Denied,
            ": the server refused the login; check user and password in the URL",
        ),
        "OOM" => (ErrorKind::Blocked, "; raise maxmemory, or let consumers catch up"),
        "MISCONF" | "NOREPLICAS" | "BUSY" => (ErrorKind::Blocked, ""),
        "WRONGTYPE" => (ErrorKind::Mismatch, "; the name is taken by something else"),
        "NOGROUP" => (ErrorKind::NotFound, "; declare the subscription"),
        "UNBLOCKED" | "READONLY" => (ErrorKind::Unavailable, ""),
        _ => (ErrorKind::Broker, ""),
    }
}

/// The server puts what a script ran into after `ERR`, with its own code first or none.
fn by_text(text: &str) -> (ErrorKind, &'static str) {
    let known = ["OOM", "WRONGTYPE", "NOGROUP", "MISCONF", "NOREPLICAS", "READONLY"];
    let Some(code) = known.iter().find(|code| text.contains(**code)) else {
        return if text.contains("invalid DB index") || text.contains("DB index is out of range") {
            (ErrorKind::Config, "; write redis://host/0")
        } else if text.contains("ACL failure") {
            (ErrorKind::Denied, ": the user lacks the right; see the permissions in the docs")
        } else if text.contains("max number of clients") {
            (ErrorKind::Blocked, "; raise maxclients")
        } else {
            (ErrorKind::Broker, "")
        };
    };
    by_code(code)
}

#[cfg(test)]
mod tests {
    use std::io;

    use RetryClass::{Permanent, Transient};

    use super::*;

    fn answered(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    fn lost(kind: io::ErrorKind) -> RedisError {
        io::Error::from(kind).into()
    }

    fn known(kind: redis::ErrorKind, detail: &str) -> RedisError {
        (kind, "", detail.to_owned()).into()
    }

    #[test]
    fn each_native_error_has_its_kind_and_class() {
        use redis::ErrorKind as Native;
        let server = |kind| known(Native::Server(kind), "");
        let rows: [(RedisError, ErrorKind, RetryClass); 22] = [
            (answered("NOAUTH", ""), ErrorKind::Denied, Permanent),
            (answered("WRONGPASS", ""), ErrorKind::Denied, Permanent),
            (server(ServerErrorKind::NoPerm), ErrorKind::Denied, Permanent),
            (known(Native::AuthenticationFailed, ""), ErrorKind::Denied, Permanent),
            (answered("OOM", ""), ErrorKind::Blocked, Transient),
            (answered("MISCONF", ""), ErrorKind::Blocked, Transient),
            (answered("NOREPLICAS", ""), ErrorKind::Blocked, Transient),
            (answered("WRONGTYPE", ""), ErrorKind::Mismatch, Permanent),
            (answered("NOGROUP", ""), ErrorKind::NotFound, Permanent),
            (answered("ODD", ""), ErrorKind::Broker, Transient),
            (server(ServerErrorKind::BusyLoading), ErrorKind::Unavailable, Transient),
            (server(ServerErrorKind::ReadOnly), ErrorKind::Unavailable, Transient),
            (server(ServerErrorKind::Moved), ErrorKind::Unsupported, Permanent),
            (
                known(Native::Server(ServerErrorKind::ResponseError), "OOM command not allowed"),
                ErrorKind::Blocked,
                Transient,
            ),
            (
                known(Native::Server(ServerErrorKind::ResponseError), "DB index is out of range"),
                ErrorKind::Config,
                Permanent,
            ),
            (
                known(Native::Server(ServerErrorKind::ResponseError), "ACL failure in script: no"),
                ErrorKind::Denied,
                Permanent,
            ),
            (
                known(Native::Server(ServerErrorKind::ResponseError), "READONLY a replica"),
                ErrorKind::Unavailable,
                Transient,
            ),
            (
                known(Native::Server(ServerErrorKind::ResponseError), "odd"),
                ErrorKind::Broker,
                Transient,
            ),
            (lost(io::ErrorKind::ConnectionRefused), ErrorKind::Unavailable, Transient),
            (lost(io::ErrorKind::ConnectionReset), ErrorKind::Unavailable, Transient),
            (known(Native::Parse, ""), ErrorKind::Unavailable, Transient),
            (known(Native::InvalidClientConfig, ""), ErrorKind::Config, Permanent),
        ];
        for (native, kind, class) in rows {
            let error = failed("test", "testing", native.clone());
            assert_eq!((error.kind(), error.retry_class()), (kind, class), "{native:?}");
        }
    }

    #[test]
    fn only_what_was_answered_is_known_not_to_have_happened() {
        let class = |error| unanswered("publish", "sending", error).retry_class();
        assert_eq!(class(lost(io::ErrorKind::ConnectionReset)), RetryClass::Ambiguous);
        assert_eq!(class(answered("OOM", "")), Transient);
    }
}
