//! Derives of anybroker: [`Event`](derive@Event) and [`Command`](derive@Command). The facade
//! exports them next to the traits of the same names.

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

mod attributes;
mod expand;

use attributes::Kind;

/// Makes a struct or enum an event: a message that says that something happened.
///
/// ```
/// use anybroker::{Event, TypedMessage};
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
/// let envelope = OrderCreated { order_id: "7".into(), total_cents: 100 }.to_envelope()?;
/// assert_eq!((envelope.version, envelope.key.as_deref()), (2, Some("7")));
/// # Ok::<(), anybroker::Error>(())
/// ```
///
/// It is published to the topic that is named after its type, unless told otherwise.
///
/// | attribute | meaning | default |
/// |---|---|---|
/// | `type = "order.created"` | the envelope's type: letters, digits, `.`, `-` and `_` | required |
/// | `version = 2` | version of the schema, from 1 | 1 |
/// | `key = "order_id"` | the field whose `to_string()` is the ordering key; an `Option` that is `None` is no key | no key |
/// | `previous = OrderCreatedV1` | the message of the next older version; it has the same type, and `From<OrderCreatedV1>` upgrades it | only this version is read |
/// | `codec = MyCodec` | how the payload is written and read | `Json` |
/// | `crate = path` | where anybroker is found, when it was renamed | `::anybroker` |
#[proc_macro_derive(Event, attributes(event))]
pub fn event(input: TokenStream) -> TokenStream {
    derive(Kind::Event, &parse_macro_input!(input as DeriveInput))
}

/// Makes a struct or enum a command: a message that asks for something.
///
/// ```
/// use anybroker::{Command, Destination, TypedMessage};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Command)]
/// #[command(type = "order.place", key = "order_id")]
/// struct PlaceOrder { order_id: String }
///
/// assert_eq!(PlaceOrder::destination(), Destination::queue("order.place"));
/// ```
///
/// It is published to the queue that is named after its type, unless told otherwise. The
/// attributes are those of [`Event`](derive@Event), in `#[command(..)]`.
#[proc_macro_derive(Command, attributes(command))]
pub fn command(input: TokenStream) -> TokenStream {
    derive(Kind::Command, &parse_macro_input!(input as DeriveInput))
}

fn derive(kind: Kind, input: &DeriveInput) -> TokenStream {
    expand::expand(kind, input).unwrap_or_else(syn::Error::into_compile_error).into()
}
