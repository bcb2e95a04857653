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

/// Says that a group does not exist to who only looks.
pub(crate) fn not_found(operation: &'static str, queue: &str) -> Error {
    let text = format!("queue {queue:?} does not exist; declare the subscription");
    error_of(ErrorKind::NotFound, operation, text)
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
        Native::ParsingError(_) => (
            ErrorKind::Unavailable,
            ": the peer speaks no AMQP; write amqps:// where the port wants TLS",
        ),
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
        | Native::MissingHeartbeatError => (ErrorKind::Unavailable, ": the connection is gone"),
        _ => (ErrorKind::Broker, ""),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use anybroker_core::RetryClass::{self, Permanent, Transient};
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    fn closed(code: u16, text: &str) -> lapin::Error {
        let kind = AMQPSoftError::from_id(code)
            .map(AMQPErrorKind::Soft)
            .or_else(|| AMQPHardError::from_id(code).map(AMQPErrorKind::Hard));
        Native::ProtocolError(AMQPError::new(kind.expect("a code"), text.into())).into()
    }

    fn lost(kind: io::ErrorKind) -> lapin::Error {
        Native::IOError(Arc::new(io::Error::from(kind))).into()
    }

    #[test]
    fn each_native_error_has_its_kind_and_class() {
        let rows: [(lapin::Error, ErrorKind, RetryClass); 23] = [
            (closed(311, ""), ErrorKind::TooLarge, Permanent),
            (closed(312, ""), ErrorKind::Unroutable, Permanent),
            (closed(320, ""), ErrorKind::Unavailable, Transient),
            (closed(402, ""), ErrorKind::NotFound, Permanent),
            (closed(403, ""), ErrorKind::Denied, Permanent),
            (closed(404, ""), ErrorKind::NotFound, Permanent),
            (closed(405, ""), ErrorKind::Blocked, Transient),
            (closed(406, ""), ErrorKind::Mismatch, Permanent),
            (closed(501, ""), ErrorKind::Unavailable, Transient),
            (closed(504, ""), ErrorKind::Unavailable, Transient),
            (closed(506, ""), ErrorKind::Blocked, Transient),
            (closed(530, "vhost x not found"), ErrorKind::NotFound, Permanent),
            (closed(530, "access to vhost refused"), ErrorKind::Denied, Permanent),
            (closed(541, ""), ErrorKind::Broker, Transient),
            (lost(io::ErrorKind::InvalidData), ErrorKind::Config, Permanent),
            (lost(io::ErrorKind::ConnectionRefused), ErrorKind::Unavailable, Transient),
            (lost(io::ErrorKind::UnexpectedEof), ErrorKind::Unavailable, Transient),
            (lost(io::ErrorKind::BrokenPipe), ErrorKind::Unavailable, Transient),
            (Native::AuthProviderError(String::new()).into(), ErrorKind::Denied, Permanent),
            (Native::ChannelsLimitReached.into(), ErrorKind::Blocked, Transient),
            (Native::InvalidChannel(1).into(), ErrorKind::Unavailable, Transient),
            (Native::MissingHeartbeatError.into(), ErrorKind::Unavailable, Transient),
            (Native::FutureCompleted.into(), ErrorKind::Broker, Transient),
        ];
        for (native, kind, class) in rows {
            let error = failed("test", "testing", native.clone());
            assert_eq!((error.kind(), error.retry_class()), (kind, class), "{native:?}");
        }
    }

    #[test]
    fn a_mismatch_shows_what_the_broker_says_of_both_sides() {
        let text = "inequivalent arg 'type': received 'topic' but current is 'fanout'";
        let error = failed("declare", "topic \"t\"", closed(406, text));
        assert!(error.to_string().starts_with("rabbitmq: declare: topic \"t\": inequivalent"));
        assert!(error.to_string().contains("but current is 'fanout'"));
    }
}
