use crate::{Destination, Envelope, Result};

/// A message with a schema: a type, a version, and how it becomes an envelope and back.
///
/// Derive [`Event`] or [`Command`] rather than implementing it by hand:
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// # use anybroker_macros::Event;
/// use anybroker::{ErrorKind, TypedMessage};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.created")]
/// struct OrderCreatedV1 { order_id: u64 }
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.created", version = 2, key = "order_id", previous = OrderCreatedV1)]
/// struct OrderCreated { order_id: String, total_cents: u64 }
///
/// impl From<OrderCreatedV1> for OrderCreated {
///     fn from(old: OrderCreatedV1) -> Self {
///         Self { order_id: old.order_id.to_string(), total_cents: 0 }
///     }
/// }
///
/// // An old message is upgraded when it is read …
/// let old = OrderCreatedV1 { order_id: 7 }.to_envelope()?;
/// let order = OrderCreated::from_envelope(&old)?;
/// assert_eq!(order.order_id, "7");
///
/// // … and a newer one than this program knows is refused.
/// let newer = order.to_envelope()?.with_version(3);
/// assert_eq!(OrderCreated::from_envelope(&newer).err().map(|e| e.kind()), Some(ErrorKind::Undecodable));
/// # Ok::<(), anybroker::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no typed message",
    label = "neither an event nor a command",
    note = "derive it: `#[derive(Serialize, Deserialize, Event)] #[event(type = \"order.created\")]`",
    note = "a handler takes the typed message, then the `Message` around it: \
            `|event: OrderCreated, message: Message| async move {{ .. }}`"
)]
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

#[cfg(test)]
mod tests;
