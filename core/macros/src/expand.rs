use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Error, Fields, LitStr, Member, Path, Result, Type};

use crate::attributes::{Attributes, Kind};

/// Writes the impls of `TypedMessage` and of the kind's own trait.
pub(crate) fn expand(kind: Kind, input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::parse(kind, input)?;
    check_shape(input)?;

    let ident = &input.ident;
    let r#type = attributes.required_type(kind, ident)?;
    let version = attributes.version_number()?;
    let krate =
        attributes.krate.as_ref().map_or_else(|| quote!(::anybroker), Path::to_token_stream);
    let codec =
        attributes.codec.as_ref().map_or_else(|| quote!(#krate::Json), Type::to_token_stream);
    let (r#trait, destination) = match kind {
        Kind::Event => (format_ident!("Event"), format_ident!("topic")),
        Kind::Command => (format_ident!("Command"), format_ident!("queue")),
    };
    let key = if let Some(name) = &attributes.key {
        let (field, r#type) = key_field(input, name)?;
        if is_option(r#type) {
            quote_spanned! {at(name.span())=>
                self.#field.as_ref().map(::std::string::ToString::to_string)
            }
        } else {
            quote_spanned! {at(name.span())=>
                ::core::option::Option::Some(::std::string::ToString::to_string(&self.#field))
            }
        }
    } else {
        quote!(::core::option::Option::None)
    };
    // The codec's requirements are reported where the codec is named, or else at the type's name.
    let codec_span = at(attributes.codec.as_ref().map_or_else(|| ident.span(), Type::span));
    let encode = quote_spanned!(codec_span=> #krate::__derive::encode::<#codec, Self>);
    let (decode, check_previous) = match &attributes.previous {
        Some(previous) => (
            quote_spanned!(at(previous.span())=>
                #krate::__derive::decode_or_upgrade::<#codec, Self, #previous>
            ),
            check_previous(&krate, input, previous),
        ),
        None => (quote!(#krate::__derive::decode::<#codec, Self>), TokenStream::new()),
    };

    Ok(quote! {
        #[automatically_derived]
        impl #krate::TypedMessage for #ident {
            const TYPE: &'static str = #r#type;
            const VERSION: u32 = #version;

            fn destination() -> #krate::Destination {
                #krate::Destination::#destination(<Self as #krate::TypedMessage>::TYPE)
            }

            fn to_envelope(&self) -> #krate::Result<#krate::Envelope> {
                #encode(self, #key)
            }

            fn from_envelope(envelope: &#krate::Envelope) -> #krate::Result<Self> {
                #decode(envelope)
            }
        }

        #[automatically_derived]
        impl #krate::#r#trait for #ident {}

        #check_previous
    })
}

/// A previous version is the same message, and older: a const panic says what is wrong otherwise.
fn check_previous(krate: &TokenStream, input: &DeriveInput, previous: &Type) -> TokenStream {
    let ident = &input.ident;
    let name = ident.unraw();
    let previous_name = previous.to_token_stream().to_string().replace(' ', "");
    let other_type = format!(
        "`{previous_name}` has another message type than `{name}`: a previous version has the same"
    );
    let not_older = format!(
        "`{previous_name}` is not older than `{name}`: a previous version has a smaller version"
    );
    quote_spanned! {at(previous.span())=>
        const _: () = {
            use #krate::TypedMessage;
            ::core::assert!(
                #krate::__derive::same(
                    <#previous as TypedMessage>::TYPE,
                    <#ident as TypedMessage>::TYPE,
                ),
                #other_type
            );
            ::core::assert!(
                <#previous as TypedMessage>::VERSION < <#ident as TypedMessage>::VERSION,
                #not_older
            );
        };
    }
}

/// Where an error is shown; names resolve as everywhere else in what the derive writes.
fn at(span: Span) -> Span {
    Span::call_site().located_at(span)
}

fn check_shape(input: &DeriveInput) -> Result<()> {
    if let Data::Union(union) = &input.data {
        return Err(Error::new(union.union_token.span, "a message is a struct or an enum"));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &input.generics,
            "a message is one concrete, owned type, since `type` and `version` name one schema: \
             remove the parameters",
        ));
    }
    Ok(())
}

/// A message whose key is `None` has no key.
fn is_option(r#type: &Type) -> bool {
    let Type::Path(path) = r#type else { return false };
    path.path.segments.last().is_some_and(|segment| segment.ident == "Option")
}

fn key_field<'a>(input: &'a DeriveInput, name: &LitStr) -> Result<(Member, &'a Type)> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(
            name,
            "`key` names a field of a struct; set an enum's key when publishing",
        ));
    };
    let wanted = name.value();
    let members = || data.fields.members();
    let mut fields = members().zip(&data.fields);
    if let Some((member, field)) = fields.find(|(member, _)| member_name(member) == wanted) {
        return Ok((member, &field.ty));
    }
    let known: Vec<_> = members().map(|member| format!("`{}`", member_name(&member))).collect();
    let known = match (&data.fields, known.is_empty()) {
        (Fields::Unit, _) | (_, true) => "it has no fields".to_owned(),
        _ => format!("it has {}", known.join(", ")),
    };
    Err(Error::new_spanned(
        name,
        format!("`{}` has no field `{wanted}` to take the key from; {known}", input.ident.unraw()),
    ))
}

fn member_name(member: &Member) -> String {
    match member {
        Member::Named(ident) => ident.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}
