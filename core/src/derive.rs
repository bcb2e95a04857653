//! What the derives `Event` and `Command` expand to. It may change with any version.

use crate::{Codec, Envelope, Error, ErrorKind, Result, TypedMessage};

/// Makes a new envelope.
pub fn encode<C: Codec<T>, T: TypedMessage>(message: &T, key: Option<String>) -> Result<Envelope> {
    let payload = C::encode(message).map_err(|error| {
        let context = format!("cannot write {}", expected::<T>());
        Error::new(ErrorKind::Invalid, context).operation("encode").with_source(error)
    })?;
    let mut envelope =
        Envelope::new(T::TYPE, payload).with_version(T::VERSION).with_content_type(C::CONTENT_TYPE);
    envelope.key = key;
    Ok(envelope)
}

/// Reads the message's own version, and no other.
pub fn decode<C: Codec<T>, T: TypedMessage>(envelope: &Envelope) -> Result<T> {
    if envelope.r#type != T::TYPE || envelope.version != T::VERSION {
        return Err(refused::<T>(envelope));
    }
    C::decode(&envelope.payload).map_err(|error| {
        let context = format!(
            "cannot read {} from {} bytes of {}",
            expected::<T>(),
            envelope.payload.len(),
            envelope.content_type
        );
        undecodable(context).with_source(error)
    })
}

/// Reads the message's own version, or an older one through its previous version.
pub fn decode_or_upgrade<C: Codec<T>, T: Upgrade<P>, P: TypedMessage>(
    envelope: &Envelope,
) -> Result<T> {
    if envelope.r#type == T::TYPE && (1..=P::VERSION).contains(&envelope.version) {
        return P::from_envelope(envelope).map(T::upgrade);
    }
    decode::<C, T>(envelope)
}

/// Names what `previous` asks for, so that the compiler says what to write.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be made from its previous version `{P}`",
    label = "`From<{P}>` is not implemented for `{Self}`",
    note = "write `impl From<{P}> for {Self}`: it upgrades messages of the older version when they \
            are read"
)]
pub trait Upgrade<P>: TypedMessage {
    /// Makes the newer message.
    fn upgrade(previous: P) -> Self;
}

#[diagnostic::do_not_recommend]
impl<T: TypedMessage + From<P>, P> Upgrade<P> for T {
    fn upgrade(previous: P) -> Self {
        previous.into()
    }
}

/// Whether two types are the same; `==` is not const.
pub const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

fn expected<T: TypedMessage>() -> String {
    format!("`{}` of version {}", T::TYPE, T::VERSION)
}

fn refused<T: TypedMessage>(envelope: &Envelope) -> Error {
    let expected = expected::<T>();
    let version = envelope.version;
    undecodable(if envelope.r#type != T::TYPE {
        format!("expected {expected}, found `{}` of version {version}", envelope.r#type)
    } else if version == 0 {
        format!("expected {expected}, found one whose version cannot be read")
    } else if version > T::VERSION {
        format!("expected {expected} or older, found the newer version {version}")
    } else {
        format!(
            "expected {expected}, found the older version {version}, which no `previous` message \
             reads"
        )
    })
}

fn undecodable(context: String) -> Error {
    Error::new(ErrorKind::Undecodable, context).operation("decode")
}
