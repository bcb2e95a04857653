use crate::{Destination, Envelope, Result};

/// A message with a schema: a type, a version, and how it becomes an envelope and back.
///
/// Derive [`Event`] or [`Command`] rather than implementing it by hand.
pub trait TypedMessage: Sized + Send + 'static {
    /// The envelope's type (`order.created`).
    const TYPE: &'static str;
    /// The version of the schema, from 1.
    const VERSION: u32;

    /// Where it is published unless told otherwise: a queue named after the type for commands, a
    /// topic for events.
    fn destination() -> Destination;

    /// Encodes it into a new envelope.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) when the codec cannot encode it.
    fn to_envelope(&self) -> Result<Envelope>;

    /// Decodes it from an envelope of this version or, through the chain of `From<Previous>`, of
    /// an older one.
    ///
    /// # Errors
    /// [`Undecodable`](crate::ErrorKind::Undecodable), permanent: another type, a newer or unknown
    /// version, a payload that does not decode.
    fn from_envelope(envelope: &Envelope) -> Result<Self>;
}

/// Says that something happened (past tense); any number of groups see it.
pub trait Event: TypedMessage {}

/// Asks for something (imperative name); one handler gets it.
pub trait Command: TypedMessage {}
