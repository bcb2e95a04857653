//! What the client's errors mean to an application: the one mapping.

use anybroker_core::{Error, ErrorKind, RetryClass};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::names::Names;

pub(crate) const BROKER: &str = "kafka";

/// Maps an error of the client; `what` says what was tried.
pub(crate) fn failed(operation: &'static str, what: &str, error: KafkaError) -> Error {
    let code = code(&error);
    let (kind, advice) = match (&error, code) {
        (KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_), _) => {
            return error_of(ErrorKind::Config, operation, format!("{what}: {error}"))
                .with_source(error);
        }
        (_, Some(code)) => meaning(code),
        (_, None) => (ErrorKind::Broker, ""),
    };
    let text = match code {
        Some(code) => format!("{what}: {code}{advice}"),
        None => format!("{what}: {error}"),
    };
    let mapped = error_of(kind, operation, text);
    let mapped = match code {
        Some(Code::PurgeInflight | Code::NetworkException | Code::OutOfOrderSequenceNumber) => {
            mapped.class(RetryClass::Ambiguous)
        }
        Some(Code::QueueFull | Code::PurgeQueue | Code::TimedOutQueue) => {
            mapped.class(RetryClass::Transient)
        }
        _ => mapped,
    };
    mapped.with_source(error)
}

/// What the cluster or the client says, in whatever operation.
pub(crate) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        // The client leaves this one out.
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
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
pub(crate) fn no_group(operation: &'static str, names: &Names) -> Error {
    let Names { group, retry, .. } = names;
    let text = format!("group {group:?} has no topic {retry:?}; declare the subscription");
    error_of(ErrorKind::NotFound, operation, text)
}

pub(crate) fn stale() -> Error {
    Error::stale("the partition of the delivery is no longer this consumer's; it comes again")
        .broker(BROKER)
        .operation("settle")
}

fn meaning(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            (ErrorKind::NotFound, "; create it, or connect with declare=create")
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            (ErrorKind::TooLarge, "; set max-payload to the topic's max.message.bytes")
        }
        Code::MessageTimedOut | Code::RequestTimedOut | Code::NotEnoughReplicasAfterAppend => {
            (ErrorKind::Timeout, "")
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => {
            (ErrorKind::Denied, "; check user, password and the option sasl")
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::PolicyViolation => (ErrorKind::Denied, "; check the user's ACLs"),
        Code::SSL => (
            ErrorKind::Config,
            "; check the certificates, or write kafka:// where the port speaks no TLS",
        ),
        Code::Resolve
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::NetworkException
        | Code::OperationTimedOut => {
            (ErrorKind::Unavailable, "; check host and port, and kafka+ssl:// for a TLS port")
        }
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::BrokerNotAvailable
        | Code::OutOfOrderSequenceNumber
        | Code::DestroyBroker => (ErrorKind::Unavailable, ""),
        Code::NotEnoughReplicas
        | Code::QueueFull
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::TimedOutQueue
        | Code::ThrottlingQuotaExceeded
        | Code::GroupMaxSizeReached => (ErrorKind::Blocked, ""),
        Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress => {
            (ErrorKind::StaleDelivery, "")
        }
        Code::InvalidTopic | Code::InvalidPartitions | Code::InvalidRecord => {
            (ErrorKind::Invalid, "")
        }
        Code::InvalidReplicationFactor => {
            (ErrorKind::Config, "; set the option replication to at most the number of brokers")
        }
        Code::InvalidSessionTimeout => (
            ErrorKind::Config,
            "; keep session-timeout between the broker's group.min.session.timeout.ms and its max",
        ),
        Code::InconsistentGroupProtocol => (
            ErrorKind::Mismatch,
            "; all members of a group use one group-protocol, and cooperative-sticky with classic",
        ),
        Code::BadCompression => (
            ErrorKind::Unsupported,
            "; a batch is broken, or larger than receive.message.max.bytes once it is unpacked",
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedCompressionType => {
            (ErrorKind::Unsupported, "")
        }
        _ => (ErrorKind::Broker, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anybroker_core::RetryClass::{Ambiguous, Permanent, Transient};

    #[test]
    fn each_native_code_has_its_kind_and_class() {
        for (code, kind, class) in [
            (Code::UnknownTopicOrPartition, ErrorKind::NotFound, Permanent),
            (Code::MessageSizeTooLarge, ErrorKind::TooLarge, Permanent),
            (Code::MessageTimedOut, ErrorKind::Timeout, Ambiguous),
            (Code::NotEnoughReplicasAfterAppend, ErrorKind::Timeout, Ambiguous),
            (Code::NotEnoughReplicas, ErrorKind::Blocked, Transient),
            (Code::SaslAuthenticationFailed, ErrorKind::Denied, Permanent),
            (Code::TopicAuthorizationFailed, ErrorKind::Denied, Permanent),
            (Code::SSL, ErrorKind::Config, Permanent),
            (Code::Resolve, ErrorKind::Unavailable, Transient),
            (Code::BrokerTransportFailure, ErrorKind::Unavailable, Transient),
            (Code::NetworkException, ErrorKind::Unavailable, Ambiguous),
            (Code::PurgeInflight, ErrorKind::Blocked, Ambiguous),
            (Code::PurgeQueue, ErrorKind::Blocked, Transient),
            (Code::QueueFull, ErrorKind::Blocked, Transient),
            (Code::OutOfOrderSequenceNumber, ErrorKind::Unavailable, Ambiguous),
            (Code::IllegalGeneration, ErrorKind::StaleDelivery, Permanent),
            (Code::InvalidTopic, ErrorKind::Invalid, Permanent),
            (Code::InvalidReplicationFactor, ErrorKind::Config, Permanent),
            (Code::InvalidSessionTimeout, ErrorKind::Config, Permanent),
            (Code::InconsistentGroupProtocol, ErrorKind::Mismatch, Permanent),
            (Code::UnsupportedVersion, ErrorKind::Unsupported, Permanent),
            (Code::BadCompression, ErrorKind::Unsupported, Permanent),
            (Code::KafkaStorageError, ErrorKind::Broker, Transient),
        ] {
            let error = failed("test", "testing", KafkaError::MessageProduction(code));
            assert_eq!((error.kind(), error.retry_class()), (kind, class), "{code:?}");
        }
    }

    #[test]
    fn the_code_is_found_in_every_operation() {
        let native = Code::InvalidReplicationFactor;
        for error in [
            KafkaError::AdminOp(native),
            KafkaError::MessageConsumption(native),
            KafkaError::MetadataFetch(native),
            KafkaError::ConsumerCommit(native),
            KafkaError::OffsetFetch(native),
            KafkaError::Global(native),
        ] {
            assert_eq!(failed("test", "testing", error).kind(), ErrorKind::Config);
        }
    }
}
