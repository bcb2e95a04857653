use std::error::Error as _;

use anybroker_macros::{Command, Event};
use serde::{Deserialize, Serialize};

use crate::{BoxError, Codec, Destination, Envelope, Error, ErrorKind, RetryClass, TypedMessage};

#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(type = "order.created", crate = crate)]
struct OrderV1 {
    id: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 2, previous = OrderV1, crate = crate)]
struct OrderV2 {
    id: String,
}

/// There never was a version 3.
#[derive(Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 4, key = "id", previous = OrderV2)]
#[event(crate = crate)]
struct Order {
    id: String,
    cents: u64,
}

impl From<OrderV1> for OrderV2 {
    fn from(old: OrderV1) -> Self {
        Self { id: format!("order-{}", old.id) }
    }
}

impl From<OrderV2> for Order {
    fn from(old: OrderV2) -> Self {
        Self { id: old.id, cents: 0 }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Command)]
#[command(type = "order.place", crate = crate)]
enum PlaceOrder {
    ByMail { to: String },
    AtOnce,
}

#[derive(Debug, PartialEq, Event)]
#[event(type = "bits", key = "0", codec = Bits, crate = crate)]
struct Flag(bool);

struct Bits;

impl Codec<Flag> for Bits {
    const CONTENT_TYPE: &'static str = "application/x-bits";

    fn encode(message: &Flag) -> Result<Vec<u8>, BoxError> {
        if message.0 { Ok(vec![1]) } else { Err("zero has no bits".into()) }
    }

    fn decode(payload: &[u8]) -> Result<Flag, BoxError> {
        match payload {
            [1] => Ok(Flag(true)),
            _ => Err("not a bit".into()),
        }
    }
}

/// The names of the prelude, and of the crate, may be taken.
mod shadowed {
    #![expect(dead_code, reason = "only the names matter")]

    struct Option;
    struct Result;
    struct String;
    mod std {}
    mod core {}

    #[derive(serde::Serialize, serde::Deserialize, anybroker_macros::Event)]
    #[event(type = "raw", key = "type", crate = crate)]
    pub(super) struct r#Raw {
        pub(super) r#type: u8,
    }
}

fn refusal<T: TypedMessage + std::fmt::Debug>(envelope: &Envelope) -> Error {
    let error = T::from_envelope(envelope).expect_err("it must be refused");
    assert_eq!(error.kind(), ErrorKind::Undecodable);
    assert_eq!(error.retry_class(), RetryClass::Permanent);
    error
}

#[test]
fn message_becomes_an_envelope_and_back() {
    let order = Order { id: "7".into(), cents: 100 };
    let envelope = order.to_envelope().unwrap();
    assert_eq!(envelope.r#type, "order.created");
    assert_eq!(envelope.version, 4);
    assert_eq!(envelope.key.as_deref(), Some("7"));
    assert_eq!(envelope.content_type, "application/json");
    assert_eq!(&envelope.payload[..], br#"{"id":"7","cents":100}"#);
    assert_eq!(Order::from_envelope(&envelope).unwrap(), order);
    assert_eq!(Order::destination(), Destination::topic("order.created"));
}

#[test]
fn a_key_that_is_none_is_no_key() {
    #[derive(serde::Serialize, serde::Deserialize, anybroker_macros::Event)]
    #[event(type = "order.created", key = "customer", crate = crate)]
    struct Order {
        customer: Option<u64>,
    }
    for (customer, key) in [(Some(7), Some("7")), (None, None)] {
        let envelope = Order { customer }.to_envelope().unwrap();
        assert_eq!(envelope.key.as_deref(), key);
    }
}

#[test]
fn enum_and_command_go_to_a_queue_without_key() {
    for command in [PlaceOrder::ByMail { to: "me".into() }, PlaceOrder::AtOnce] {
        let envelope = command.to_envelope().unwrap();
        assert_eq!((envelope.version, &envelope.key), (1, &None));
        assert_eq!(PlaceOrder::from_envelope(&envelope).unwrap(), command);
    }
    assert_eq!(PlaceOrder::destination(), Destination::queue("order.place"));
}

#[test]
fn taken_names_and_raw_identifiers_do_not_disturb() {
    let envelope = shadowed::Raw { r#type: 3 }.to_envelope().unwrap();
    assert_eq!(envelope.key.as_deref(), Some("3"));
}

#[test]
fn older_versions_are_upgraded_through_the_chain() {
    let oldest = OrderV1 { id: 7 }.to_envelope().unwrap();
    assert_eq!(Order::from_envelope(&oldest).unwrap(), Order { id: "order-7".into(), cents: 0 });
    let old = OrderV2 { id: "x".into() }.to_envelope().unwrap();
    assert_eq!(Order::from_envelope(&old).unwrap(), Order { id: "x".into(), cents: 0 });
}

#[test]
fn unreadable_versions_and_other_types_are_refused() {
    let envelope = Order { id: "7".into(), cents: 1 }.to_envelope().unwrap();
    for (envelope, text) in [
        (
            envelope.clone().with_version(5),
            "expected `order.created` of version 4 or older, found the newer version 5",
        ),
        (
            envelope.clone().with_version(3),
            "expected `order.created` of version 4, found the older version 3, which no \
             `previous` message reads",
        ),
        (
            envelope.clone().with_version(0),
            "expected `order.created` of version 4, found one whose version cannot be read",
        ),
        (
            Envelope::new("order.cancelled", "{}").with_version(1),
            "expected `order.created` of version 4, found `order.cancelled` of version 1",
        ),
    ] {
        assert_eq!(refusal::<Order>(&envelope).to_string(), format!("decode: {text}"));
    }
    refusal::<OrderV1>(&OrderV2 { id: "x".into() }.to_envelope().unwrap());
}

#[test]
fn payload_that_does_not_decode_is_refused_with_its_cause() {
    let mut envelope = Order { id: "7".into(), cents: 1 }.to_envelope().unwrap();
    envelope.payload = "{".into();
    let error = refusal::<Order>(&envelope);
    let text = "decode: cannot read `order.created` of version 4 from 1 bytes of application/json";
    assert_eq!(error.to_string(), text);
    assert!(error.source().unwrap().is::<serde_json::Error>());
    // An old payload's problem is told of the old version.
    let error = refusal::<Order>(&envelope.with_version(1));
    assert!(error.to_string().contains("version 1"), "{error}");
}

#[test]
fn codec_of_its_own_writes_and_reads() {
    let envelope = Flag(true).to_envelope().unwrap();
    assert_eq!(envelope.content_type, "application/x-bits");
    assert_eq!(envelope.key.as_deref(), Some("true"));
    assert_eq!(&envelope.payload[..], [1]);
    assert_eq!(Flag::from_envelope(&envelope).unwrap(), Flag(true));
    assert_eq!(Flag(false).to_envelope().unwrap_err().kind(), ErrorKind::Invalid);
    refusal::<Flag>(&Envelope::new("bits", "2"));
}
