use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// Any error of a handler or of a layer.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the library: one pointer wide, says what was tried and what to do.
///
/// The driver's own error is its [`source`](StdError::source); reach it by downcast. No secret
/// ever appears in the text or in the `Debug` form.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    class: RetryClass,
    context: Cow<'static, str>,
    broker: Option<&'static str>,
    operation: Option<&'static str>,
    source: Option<BoxError>,
}

/// What went wrong, coarse enough to `match` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A URL, an option or a combination of settings is wrong.
    Config,
    /// The broker cannot be reached, or the connection broke.
    Unavailable,
    /// The broker refused the credentials or the right to do this.
    Denied,
    /// A destination or group does not exist and may not be declared.
    NotFound,
    /// A destination exists with other properties than asked for.
    Mismatch,
    /// No group would have received the message.
    Unroutable,
    /// The message is larger than the broker takes.
    TooLarge,
    /// An envelope, a name or a header breaks a rule of the library.
    Invalid,
    /// A payload does not decode into the expected message.
    Undecodable,
    /// The settlement came too late: the lease, the partition or the connection is gone.
    StaleDelivery,
    /// The operation did not end before its deadline.
    Timeout,
    /// The broker refuses work for now: an alarm, a full queue, a quota.
    Blocked,
    /// The broker, producer or consumer was closed.
    Closed,
    /// The broker cannot do this; its capabilities say so.
    Unsupported,
    /// The broker answered with an error of another kind.
    Broker,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// It did not happen, and may succeed later.
    Transient,
    /// It may or may not have happened: trying again can duplicate.
    Ambiguous,
    /// It will fail again.
    Permanent,
}

impl Error {
    /// Makes an error; `context` says in lower case what was tried and what to do.
    ///
    /// The retry class follows from the kind until [`class`](Self::class) sets another.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            class: kind.retry_class(),
            context: context.into(),
            broker: None,
            operation: None,
            source: None,
        }))
    }

    /// Names the broker (`"rabbitmq"`).
    pub fn broker(mut self, broker: &'static str) -> Self {
        self.0.broker = Some(broker);
        self
    }

    /// Names the operation (`"publish"`).
    pub fn operation(mut self, operation: &'static str) -> Self {
        self.0.operation = Some(operation);
        self
    }

    /// Keeps the error that caused this one.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets whether trying again can help, where the kind alone does not tell.
    pub fn class(mut self, class: RetryClass) -> Self {
        self.0.class = class;
        self
    }

    /// Shorthand for a settlement that came too late.
    pub fn stale(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::StaleDelivery, context)
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again can help.
    pub fn retry_class(&self) -> RetryClass {
        self.0.class
    }

    /// The broker, where one was involved.
    pub fn broker_name(&self) -> Option<&'static str> {
        self.0.broker
    }

    /// The operation that failed, where one was named.
    pub fn operation_name(&self) -> Option<&'static str> {
        self.0.operation
    }
}

impl ErrorKind {
    fn retry_class(self) -> RetryClass {
        match self {
            Self::Unavailable | Self::Blocked | Self::Broker => RetryClass::Transient,
            Self::Timeout => RetryClass::Ambiguous,
            _ => RetryClass::Permanent,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(broker) = self.0.broker {
            write!(f, "{broker}: ")?;
        }
        if let Some(operation) = self.0.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.0.kind).field("class", &self.0.class);
        if let Some(broker) = self.0.broker {
            debug.field("broker", &broker);
        }
        if let Some(operation) = self.0.operation {
            debug.field("operation", &operation);
        }
        debug.field("context", &self.0.context);
        if let Some(source) = &self.0.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
