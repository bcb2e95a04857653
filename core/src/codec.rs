#[cfg(feature = "json")]
use serde::{Serialize, de::DeserializeOwned};

use crate::BoxError;

/// Writes a message of type `T` as a payload and reads it back.
///
/// [`Json`] is the default of the derives; name another by `#[event(codec = Text)]`:
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// # use anybroker_macros::Event;
/// use anybroker::{BoxError, Codec, TypedMessage};
///
/// struct Text;
///
/// impl Codec<LineWritten> for Text {
///     const CONTENT_TYPE: &'static str = "text/plain";
///
///     fn encode(message: &LineWritten) -> Result<Vec<u8>, BoxError> {
///         Ok(message.0.clone().into_bytes())
///     }
///
///     fn decode(payload: &[u8]) -> Result<LineWritten, BoxError> {
///         Ok(LineWritten(str::from_utf8(payload)?.to_owned()))
///     }
/// }
///
/// #[derive(Event)]
/// #[event(type = "line.written", codec = Text)]
/// struct LineWritten(String);
///
/// let envelope = LineWritten("hello".into()).to_envelope()?;
/// assert_eq!(envelope.content_type, "text/plain");
/// assert_eq!(LineWritten::from_envelope(&envelope)?.0, "hello");
/// # Ok::<(), anybroker::Error>(())
/// ```
///
/// # Errors
/// An error of `encode` refuses the publish. An error of `decode` is permanent: the message goes
/// to the dead-letter queue as it came, whatever the error says of itself.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write and read `{T}`",
    label = "not written and read by `{Self}`",
    note = "for JSON, derive `serde::Serialize` and `serde::Deserialize` for `{T}`",
    note = "for another format, implement `Codec<{T}>` and name it in `codec = ..` of the derive's \
            attribute"
)]
pub trait Codec<T> {
    /// Media type of the payloads.
    const CONTENT_TYPE: &'static str;

    /// Writes a payload.
    ///
    /// # Errors
    /// The message cannot be written in this format.
    fn encode(message: &T) -> Result<Vec<u8>, BoxError>;

    /// Reads a payload.
    ///
    /// # Errors
    /// The payload is no such message.
    fn decode(payload: &[u8]) -> Result<T, BoxError>;
}

/// Writes and reads JSON by serde: the default codec, behind the feature `json`.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug)]
pub struct Json;

#[cfg(feature = "json")]
#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode(message: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(message)?)
    }

    fn decode(payload: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(payload)?)
    }
}
