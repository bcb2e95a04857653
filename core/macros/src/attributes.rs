use proc_macro2::{Ident, Span};
use quote::ToTokens as _;
use syn::ext::IdentExt as _;
use syn::meta::ParseNestedMeta;
use syn::{DeriveInput, Error, LitInt, LitStr, Meta, Path, Result, Type};

/// Which of the two derives runs.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Event,
    Command,
}

impl Kind {
    /// The name of the attribute.
    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Command => "command",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Event => "#[event(type = \"order.created\")]",
            Self::Command => "#[command(type = \"order.place\")]",
        }
    }
}

/// What `#[event(..)]` and `#[command(..)]` say.
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) r#type: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) key: Option<LitStr>,
    pub(crate) previous: Option<Type>,
    pub(crate) codec: Option<Type>,
    pub(crate) krate: Option<Path>,
}

/// As `Envelope::validate` has it.
const LONGEST_TYPE: usize = 256;

impl Attributes {
    /// Reads all attributes of the kind; several of them count as one.
    pub(crate) fn parse(kind: Kind, input: &DeriveInput) -> Result<Self> {
        let mut attributes = Self::default();
        for attribute in &input.attrs {
            if attribute.path().is_ident(kind.attribute()) {
                if !matches!(attribute.meta, Meta::List(_)) {
                    let hint = format!("write it as `{}`", kind.example());
                    return Err(Error::new_spanned(attribute, hint));
                }
                attribute.parse_nested_meta(|meta| attributes.read(&meta))?;
            }
        }
        Ok(attributes)
    }

    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        // Not `get_ident`, which finds none in `crate`.
        let name = meta.path.to_token_stream().to_string();
        match name.as_str() {
            "type" => set(&mut self.r#type, meta, string),
            "version" => set(&mut self.version, meta, number),
            "key" => set(&mut self.key, meta, string),
            "previous" => set(&mut self.previous, meta, |meta| meta.value()?.parse()),
            "codec" => set(&mut self.codec, meta, |meta| meta.value()?.parse()),
            "crate" => set(&mut self.krate, meta, |meta| meta.value()?.call(Path::parse_mod_style)),
            _ => Err(meta.error(
                "unknown attribute; expected `type`, `version`, `key`, `previous`, `codec` or \
                 `crate`",
            )),
        }
    }

    /// The type, present and within its limits.
    pub(crate) fn required_type(&self, kind: Kind, ident: &Ident) -> Result<&LitStr> {
        let Some(r#type) = &self.r#type else {
            return Err(Error::new_spanned(
                ident,
                format!(
                    "`{}` has no message type: add `{}`, the name that travels with each message",
                    ident.unraw(),
                    kind.example()
                ),
            ));
        };
        let value = r#type.value();
        if value.is_empty() {
            return Err(Error::new_spanned(
                r#type,
                "the message type is empty; it names the message on the broker, as in \
                 `type = \"order.created\"`",
            ));
        }
        if value.len() > LONGEST_TYPE {
            return Err(Error::new_spanned(
                r#type,
                format!(
                    "the message type has {} bytes; at most {LONGEST_TYPE} are allowed",
                    value.len()
                ),
            ));
        }
        let is_plain = |char: char| char.is_ascii_alphanumeric() || ".-_".contains(char);
        if let Some(odd) = value.chars().find(|char| !is_plain(*char)) {
            return Err(Error::new_spanned(
                r#type,
                format!(
                    "the message type contains {odd:?}; write it with letters, digits and `.`, `-`, \
                     `_`, as in `type = \"order.created\"`, so that every broker can route by it"
                ),
            ));
        }
        Ok(r#type)
    }

    /// The version, 1 unless given.
    pub(crate) fn version_number(&self) -> Result<u32> {
        let Some(version) = &self.version else { return Ok(1) };
        match version.base10_parse::<u32>() {
            Ok(0) => Err(Error::new_spanned(
                version,
                "versions begin at 1; 0 stands for a message whose version cannot be read",
            )),
            Ok(number) => Ok(number),
            Err(_) => Err(not_a_version(version.span())),
        }
    }
}

fn set<T>(
    slot: &mut Option<T>,
    meta: &ParseNestedMeta<'_>,
    parse: impl FnOnce(&ParseNestedMeta<'_>) -> Result<T>,
) -> Result<()> {
    if slot.is_some() {
        return Err(meta.error("this is said twice; keep one"));
    }
    *slot = Some(parse(meta)?);
    Ok(())
}

fn string(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let value = meta.value()?;
    let span = value.span();
    value.parse().map_err(|_| Error::new(span, "expected a text in quotes"))
}

fn number(meta: &ParseNestedMeta<'_>) -> Result<LitInt> {
    let value = meta.value()?;
    let span = value.span();
    value.parse().map_err(|_| not_a_version(span))
}

fn not_a_version(span: Span) -> Error {
    Error::new(span, "expected a version: a whole number from 1, as in `version = 2`")
}
