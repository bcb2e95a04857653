//! What the layers tell each other about an error, in a form that layers from elsewhere pass on:
//! a private wrapper, found by walking the chain of sources.

use std::error::Error as StdError;
use std::fmt;

use crate::{BoxError, Error, RetryClass};

/// Marks an error as one that trying again cannot mend: the message is dead-lettered at once.
pub fn permanent(error: impl Into<BoxError>) -> BoxError {
    Box::new(Marked { mark: Mark::Permanent, error: error.into() })
}

/// Whether trying again can help, as far as the error or one of its causes tells; an error that
/// says nothing is transient.
pub fn retry_class(error: &BoxError) -> RetryClass {
    match find(error) {
        Some(Mark::Permanent | Mark::Exhausted) => RetryClass::Permanent,
        Some(Mark::Class(class)) => class,
        None => RetryClass::Transient,
    }
}

/// Marks an error that the retry layer gave up on.
pub(crate) fn exhausted(error: BoxError) -> BoxError {
    Box::new(Marked { mark: Mark::Exhausted, error })
}

/// The outermost thing the chain says.
pub(crate) fn find(error: &BoxError) -> Option<Mark> {
    let mut link: Option<&(dyn StdError + 'static)> = Some(&**error);
    while let Some(error) = link {
        if let Some(marked) = error.downcast_ref::<Marked>() {
            return Some(marked.mark);
        }
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(Mark::Class(error.retry_class()));
        }
        link = error.source();
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Permanent,
    Exhausted,
    Class(RetryClass),
}

/// Shows the error it wraps, and is invisible otherwise.
struct Marked {
    mark: Mark,
    error: BoxError,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Marked {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The text is already the wrapped error's: its causes follow, not itself again.
        // An anybroker error must stay findable, so that its class and kind survive.
        match self.error.downcast_ref::<Error>() {
            Some(error) => Some(error),
            None => self.error.source(),
        }
    }
}
