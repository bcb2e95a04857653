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

    /// Names the broker (`"memory"`).
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

    /// Shorthand for what was declared in another shape, of which it shows both.
    pub fn mismatch(what: &str, found: &str, asked: &str) -> Self {
        let text = format!(
            "{what} is declared as {found}, not as {asked}; use the same on all sides, or delete it"
        );
        Self::new(ErrorKind::Mismatch, text).operation("declare")
    }

    /// The same error once more, for another who waits for the same; without its source.
    pub fn again(&self) -> Self {
        let (kind, class, context) = (self.0.kind, self.0.class, self.0.context.clone());
        let (broker, operation) = (self.0.broker, self.0.operation);
        Self(Box::new(Inner { kind, class, context, broker, operation, source: None }))
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

/// A sentence with its causes, as `main` and `unwrap` print it; the fields with `{:#?}`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let Inner { kind, class, context, broker, operation, source } = &*self.0;
            return f
                .debug_struct("Error")
                .field("kind", kind)
                .field("class", class)
                .field("broker", broker)
                .field("operation", operation)
                .field("context", context)
                .field("source", source)
                .finish();
        }
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Error {
        Error::new(ErrorKind::Denied, "the broker refused user \"app\"; check the URL")
            .broker("rabbitmq")
            .operation("connect")
            .with_source("ACCESS_REFUSED")
    }

    #[test]
    fn it_says_where_and_what_but_not_its_source() {
        let error = refused();
        let text = "rabbitmq: connect: the broker refused user \"app\"; check the URL";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.source().expect("a source").to_string(), "ACCESS_REFUSED");
        assert_eq!(error.broker_name(), Some("rabbitmq"));
        assert_eq!(error.operation_name(), Some("connect"));
        assert_eq!(Error::stale("the lease ran out").to_string(), "the lease ran out");
        assert!(Error::stale("the lease ran out").source().is_none());
        assert_eq!(
            (error.again().to_string(), error.again().kind()),
            (error.to_string(), error.kind())
        );
    }

    #[test]
    fn debug_is_a_sentence_with_its_causes_or_shows_the_fields() {
        let outer = Error::new(ErrorKind::Unavailable, "not now").with_source(refused());
        let text =
            "rabbitmq: connect: the broker refused user \"app\"; check the URL: ACCESS_REFUSED";
        assert_eq!(format!("{:?}", refused()), text);
        assert_eq!(format!("{outer:?}"), format!("not now: {text}"));
        let fields = format!("{:#?}", refused());
        for field in ["kind: Denied", "class: Permanent", "\"rabbitmq\"", "\"ACCESS_REFUSED\""] {
            assert!(fields.contains(field), "{fields}");
        }
    }

    #[test]
    fn the_drivers_error_is_reached_by_downcast() {
        let error = Error::new(ErrorKind::Unavailable, "gone").with_source(fmt::Error);
        assert!(error.source().expect("a source").is::<fmt::Error>());
    }

    #[test]
    fn the_class_follows_from_the_kind_unless_set() {
        for (kind, class) in [
            (ErrorKind::Config, RetryClass::Permanent),
            (ErrorKind::Unavailable, RetryClass::Transient),
            (ErrorKind::Denied, RetryClass::Permanent),
            (ErrorKind::NotFound, RetryClass::Permanent),
            (ErrorKind::Mismatch, RetryClass::Permanent),
            (ErrorKind::Unroutable, RetryClass::Permanent),
            (ErrorKind::TooLarge, RetryClass::Permanent),
            (ErrorKind::Invalid, RetryClass::Permanent),
            (ErrorKind::Undecodable, RetryClass::Permanent),
            (ErrorKind::StaleDelivery, RetryClass::Permanent),
            (ErrorKind::Timeout, RetryClass::Ambiguous),
            (ErrorKind::Blocked, RetryClass::Transient),
            (ErrorKind::Closed, RetryClass::Permanent),
            (ErrorKind::Unsupported, RetryClass::Permanent),
            (ErrorKind::Broker, RetryClass::Transient),
        ] {
            assert_eq!(Error::new(kind, "").retry_class(), class, "{kind:?}");
        }
        let error = Error::new(ErrorKind::Unavailable, "").class(RetryClass::Ambiguous);
        assert_eq!(error.retry_class(), RetryClass::Ambiguous);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn it_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }
}
