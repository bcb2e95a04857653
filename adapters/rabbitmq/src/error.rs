//! What the client's errors mean to an application: the one mapping.

use anybroker_core::{Error, ErrorKind};
use lapin::ErrorKind as Native;

pub(crate) const BROKER: &str = "rabbitmq";

/// Maps an error of the client; `what` says what was tried.
pub(crate) fn failed(operation: &'static str, what: &str, error: lapin::Error) -> Error {
    let (kind, advice) = meaning(&error);
    let text = match (error.kind(), advice) {
        // The broker's text shows both sides of a mismatch, which no advice can.
        (Native::ProtocolError(amqp), advice) => {
            format!("{what}: {}{advice}", amqp.get_message())
        }
        (_, advice) => format!("{what}{advice}"),
    };
    error_of(kind, operation, text).with_source(error)
}

pub(crate) fn error_of(
    kind: ErrorKind,
    operation: &'static str,
    text: impl Into<std::borrow::Cow<'static, str>>,
) -> Error {
    Error::new(kind, text).broker(BROKER).operation(operation)
}

pub(crate) fn closed(operation: &'static str) -> Error {
    error_of(ErrorKind::Closed, operation, "the broker was closed: connect again")
}

fn meaning(error: &lapin::Error) -> (ErrorKind, &'static str) {
    match error.kind() {
        Native::ProtocolError(amqp) => match amqp.get_id() {
            311 => (ErrorKind::TooLarge, ""),
            312 => (ErrorKind::Unroutable, ""),
            320 | 501 | 504 => (ErrorKind::Unavailable, ""),
            402 => (ErrorKind::NotFound, ""),
            403 => (ErrorKind::Denied, "; check user, password and permissions"),
            404 => (ErrorKind::NotFound, "; declare it, or connect with declare=create"),
            405 | 506 => (ErrorKind::Blocked, ""),
            406 => (ErrorKind::Mismatch, "; use the same settings on all sides, or delete it"),
            530 if amqp.get_message().as_str().contains("not found") => {
                (ErrorKind::NotFound, "; create it, or write another one as amqp://host/vhost")
            }
            530 => (ErrorKind::Denied, ""),
            _ => (ErrorKind::Broker, ""),
        },
        Native::IOError(io) if io.kind() == std::io::ErrorKind::InvalidData => (
            ErrorKind::Config,
            ": the TLS handshake failed; check the certificates, or write amqp:// where the port speaks no TLS",
        ),
        Native::IOError(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            (ErrorKind::Unavailable, ": nothing listens there; check host and port")
        }
        Native::IOError(io)
            if matches!(
                io.kind(),
                std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::ConnectionAborted
                    | std::io::ErrorKind::ConnectionReset
            ) =>
        {
            (
                ErrorKind::Unavailable,
                ": the peer ended the connection; write amqps:// where the port wants TLS",
            )
        }
        Native::AuthProviderError(_) => (ErrorKind::Denied, ""),
        Native::ChannelsLimitReached => {
            (ErrorKind::Blocked, ": the connection has no channel left; raise channel_max")
        }
        Native::SerialisationError(_) => (ErrorKind::Invalid, ": it does not fit a frame"),
        Native::InvalidProtocolVersion(_) => (ErrorKind::Config, ": it speaks no AMQP 0-9-1"),
        Native::IOError(_)
        | Native::RuntimeShutdownError(_)
        | Native::InvalidChannel(_)
        | Native::InvalidChannelState(..)
        | Native::InvalidConnectionState(_)
        | Native::ParsingError(_)
        | Native::MissingHeartbeatError => (ErrorKind::Unavailable, ": the connection is gone"),
        _ => (ErrorKind::Broker, ""),
    }
}
