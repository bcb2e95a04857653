use std::borrow::Cow;
use std::io;

use anybroker_core::{Error, ErrorKind, Result, RetryClass};

pub(crate) fn error(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(kind, context).broker("folder")
}

/// Says what an error of the file system means.
pub(crate) fn failed(source: io::Error) -> Error {
    let (kind, context) = match source.kind() {
        io::ErrorKind::NotFound => (ErrorKind::NotFound, "it does not exist: declare it first"),
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::Denied, "the folder may not be written by this user: change its owner")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::Blocked, "the disk is full: make room")
        }
        _ => (ErrorKind::Unavailable, "the folder cannot be read or written"),
    };
    error(kind, context).with_source(source)
}

/// What became of each one in a batch: some of them may have been stored before the error.
pub(crate) fn shared(batch: &io::Result<()>) -> Result<()> {
    match batch {
        Ok(()) => Ok(()),
        Err(error) => Err(failed(error.kind().into()).class(RetryClass::Ambiguous)),
    }
}

pub(crate) fn closed() -> Error {
    error(ErrorKind::Closed, "the broker is closed: connect again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_file_system_has_a_kind() {
        for (native, kind, class) in [
            (io::ErrorKind::NotFound, ErrorKind::NotFound, RetryClass::Permanent),
            (io::ErrorKind::PermissionDenied, ErrorKind::Denied, RetryClass::Permanent),
            (io::ErrorKind::StorageFull, ErrorKind::Blocked, RetryClass::Transient),
            (io::ErrorKind::QuotaExceeded, ErrorKind::Blocked, RetryClass::Transient),
            (io::ErrorKind::Other, ErrorKind::Unavailable, RetryClass::Transient),
        ] {
            let error = failed(native.into());
            assert_eq!((error.kind(), error.retry_class()), (kind, class), "{native:?}");
        }
    }
}
