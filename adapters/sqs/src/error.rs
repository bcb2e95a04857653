//! What the SDK's errors mean to an application: the one mapping.

use std::error::Error as StdError;

use anybroker_core::{Error, ErrorKind, RetryClass, Subscription};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use hyper_util::client::legacy;

pub(crate) const BROKER: &str = "sqs";

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
pub(crate) fn no_group(operation: &'static str, subscription: &Subscription) -> Error {
    let (name, group) = (subscription.destination().name(), subscription.group_name());
    let text = format!("group {group:?} of {name:?} does not exist; declare the subscription");
    error_of(ErrorKind::NotFound, operation, text)
}

/// Maps a call that failed as a whole; `what` says what was tried.
pub(crate) fn failed<E>(
    operation: &'static str,
    what: &str,
    error: SdkError<E, HttpResponse>,
) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let mapped = match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            match (error.code(), error.message()) {
                (None, None) => unknown(operation, what, status),
                (code, text) => {
                    of_code(operation, what, code.unwrap_or_default(), text, status < 500)
                }
            }
        }
        SdkError::TimeoutError(_) => timed_out(operation, what),
        SdkError::DispatchFailure(failure) if failure.is_timeout() && !not_sent(&error) => {
            timed_out(operation, what)
        }
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
            let text = format!("{what}: the server cannot be reached; check endpoint and region");
            let error_of = error_of(ErrorKind::Unavailable, operation, text);
            if not_sent(&error) { error_of } else { error_of.class(RetryClass::Ambiguous) }
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => no_credentials(operation, what),
        SdkError::DispatchFailure(_) if is_about_credentials(&error) => {
            no_credentials(operation, what)
        }
        SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
            let text = format!("{what}: the connection broke, or the peer is not SQS or SNS");
            error_of(ErrorKind::Unavailable, operation, text).class(RetryClass::Ambiguous)
        }
        _ => error_of(ErrorKind::Config, operation, format!("{what}: the request cannot be built")),
    };
    // A refusal may repeat what was signed, a session's token among it.
    if mapped.kind() == ErrorKind::Denied { mapped } else { mapped.with_source(error) }
}

/// What no server of this protocol answers, but a page that says nothing, or a gateway before it.
fn unknown(operation: &'static str, what: &str, status: u16) -> Error {
    let text = format!(
        "{what}: the peer answered with HTTP status {status} and no error code, so it is not SQS or SNS; check the endpoint, and what stands before it"
    );
    if status < 500 {
        error_of(ErrorKind::Config, operation, text)
    } else {
        error_of(ErrorKind::Unavailable, operation, text).class(RetryClass::Ambiguous)
    }
}

fn timed_out(operation: &'static str, what: &str) -> Error {
    error_of(ErrorKind::Timeout, operation, format!("{what}: no answer in time"))
}

fn no_credentials(operation: &'static str, what: &str) -> Error {
    let text = format!(
        "{what}: no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    );
    error_of(ErrorKind::Denied, operation, text)
}

/// Maps an error by its code; of an entry in a batch, or of a whole call. `senders` says that the
/// sender is at fault, so that trying again does not help.
pub(crate) fn of_code(
    operation: &'static str,
    what: &str,
    code: &str,
    text: Option<&str>,
    senders: bool,
) -> Error {
    let (kind, advice) = meaning(code, text.unwrap_or_default());
    let detail = match kind {
        // What was signed stands in the server's text.
        ErrorKind::Denied => code,
        _ => text.unwrap_or(code),
    };
    let error = error_of(kind, operation, format!("{what}: {detail}{advice}"));
    match kind {
        ErrorKind::Broker if senders => error.class(RetryClass::Permanent),
        // It failed in the middle of the work.
        ErrorKind::Broker => error.class(RetryClass::Ambiguous),
        _ => error,
    }
}

fn meaning(code: &str, text: &str) -> (ErrorKind, &'static str) {
    // The Query protocol's codes have a prefix and suffixes that those of JSON have not.
    let code = code.trim_start_matches("AWS.SimpleQueueService.");
    let code = code.strip_suffix("Exception").unwrap_or(code);
    match code {
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "ExpiredToken"
        | "OptInRequired"
        | "NotAuthorized" => (ErrorKind::Denied, "; check access key, secret and region"),
        "AccessDenied" | "AuthorizationError" | "KmsAccessDenied" | "KMSAccessDenied"
        | "KMS.AccessDenied" => (ErrorKind::Denied, "; the credentials lack the right to do this"),
        "QueueDoesNotExist" | "NonExistentQueue" | "NotFound" => {
            (ErrorKind::NotFound, "; declare it, or connect with declare=create")
        }
        "QueueNameExists" | "QueueAlreadyExists" => {
            (ErrorKind::Mismatch, "; use the same settings on all sides, or delete it")
        }
        "QueueDeletedRecently" => {
            (ErrorKind::Blocked, "; wait for the rest of the 60 s, or use another name")
        }
        "RequestThrottled"
        | "Throttling"
        | "Throttled"
        | "TooManyRequests"
        | "OverLimit"
        | "RequestLimitExceeded"
        | "KmsThrottled"
        | "KMSThrottling"
        | "KMS.Throttling"
        | "SlowDown" => (ErrorKind::Blocked, "; slow down, or raise the quota"),
        "InvalidAction" => (ErrorKind::Unsupported, "; a server without SNS takes no topics"),
        "ServiceUnavailable" => (ErrorKind::Unavailable, ""),
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => (ErrorKind::StaleDelivery, ""),
        "InvalidMessageContents" => (ErrorKind::Invalid, ""),
        "BatchRequestTooLong" | "MessageTooLong" => (ErrorKind::TooLarge, ""),
        "InvalidParameterValue" | "InvalidParameter" | "InvalidAttributeValue" => {
            // The codes name the parameter's fault, the text which.
            if text.contains("TooLong")
                || text.contains("shorter than")
                || text.contains("too long")
            {
                (ErrorKind::TooLarge, "")
            } else if text.contains("InvalidMessageContents") {
                (ErrorKind::Invalid, "")
            } else if text.contains("receipt handle") || text.contains("ReceiptHandle") {
                (ErrorKind::StaleDelivery, "")
            } else {
                (ErrorKind::Broker, "")
            }
        }
        _ => (ErrorKind::Broker, ""),
    }
}

/// Whether it is certain that no byte of the request was sent.
pub(crate) fn not_sent(error: &(dyn StdError + 'static)) -> bool {
    chain(error)
        .any(|error| error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect))
}

fn is_about_credentials(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(<dyn StdError>::is::<CredentialsError>)
}

fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

#[cfg(test)]
mod tests {
    use anybroker_core::RetryClass::{self, Ambiguous, Permanent, Transient};

    use super::*;

    #[test]
    fn each_native_code_has_its_kind_and_class() {
        let rows: [(&str, &str, bool, ErrorKind, RetryClass); 26] = [
            ("InvalidClientTokenId", "", true, ErrorKind::Denied, Permanent),
            ("SignatureDoesNotMatch", "", true, ErrorKind::Denied, Permanent),
            ("ExpiredTokenException", "", true, ErrorKind::Denied, Permanent),
            ("AccessDeniedException", "", true, ErrorKind::Denied, Permanent),
            ("AWS.SimpleQueueService.NonExistentQueue", "", true, ErrorKind::NotFound, Permanent),
            ("QueueDoesNotExist", "", true, ErrorKind::NotFound, Permanent),
            ("NotFoundException", "", true, ErrorKind::NotFound, Permanent),
            ("QueueNameExists", "", true, ErrorKind::Mismatch, Permanent),
            ("RequestThrottled", "", true, ErrorKind::Blocked, Transient),
            ("ThrottlingException", "", true, ErrorKind::Blocked, Transient),
            ("TooManyRequestsException", "", true, ErrorKind::Blocked, Transient),
            ("KmsThrottled", "", true, ErrorKind::Blocked, Transient),
            ("KMSThrottlingException", "", true, ErrorKind::Blocked, Transient),
            ("KMS.ThrottlingException", "", true, ErrorKind::Blocked, Transient),
            (
                "AWS.SimpleQueueService.QueueDeletedRecently",
                "",
                true,
                ErrorKind::Blocked,
                Transient,
            ),
            ("OverLimit", "", true, ErrorKind::Blocked, Transient),
            ("InvalidAction", "", true, ErrorKind::Unsupported, Permanent),
            ("ServiceUnavailable", "", false, ErrorKind::Unavailable, Transient),
            ("ReceiptHandleIsInvalid", "", true, ErrorKind::StaleDelivery, Permanent),
            (
                "InvalidParameterValue",
                "Value x for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired",
                true,
                ErrorKind::StaleDelivery,
                Permanent,
            ),
            ("InvalidMessageContents", "", true, ErrorKind::Invalid, Permanent),
            (
                "InvalidAttributeValue",
                "InvalidMessageContents",
                true,
                ErrorKind::Invalid,
                Permanent,
            ),
            ("InvalidParameter", "Message too long", true, ErrorKind::TooLarge, Permanent),
            ("BatchRequestTooLong", "", true, ErrorKind::TooLarge, Permanent),
            ("InvalidParameterValue", "DelaySeconds", true, ErrorKind::Broker, Permanent),
            ("InternalError", "", false, ErrorKind::Broker, Ambiguous),
        ];
        for (code, text, senders, kind, class) in rows {
            let error = of_code("test", "it", code, Some(text), senders);
            assert_eq!((error.kind(), error.retry_class()), (kind, class), "{code}");
        }
    }

    #[test]
    fn a_refusal_does_not_repeat_what_was_signed() {
        let text = "The Canonical String for this request should have been: secret";
        let error = of_code("connect", "SQS", "SignatureDoesNotMatch", Some(text), true);
        assert_eq!(
            error.to_string(),
            "sqs: connect: SQS: SignatureDoesNotMatch; check access key, secret and region"
        );
    }
}
