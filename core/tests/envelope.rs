//! Whatever is published comes back as it was, and whatever comes is readable.

use std::time::{Duration, SystemTime};

use anybroker_core::cloudevents::{AttributeReader, from_json, to_json, write_attributes};
use anybroker_core::{Envelope, Failure, Headers, Hop, Result};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;

/// 1 to `limit` characters of any kind, NUL and the rest of the control characters among them.
fn text(limit: usize) -> impl Strategy<Value = String> {
    let character =
        prop_oneof![any::<char>(), Just('\0'), Just('\u{7f}'), Just('"'), Just('ß'), Just('a')];
    vec(character, 1..=limit).prop_map(|text| text.into_iter().collect())
}

/// Any time that RFC 3339 can write and the clock of this machine can hold.
fn time() -> impl Strategy<Value = SystemTime> {
    (-62_167_219_200_i64..253_402_207_200, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| {
        let (epoch, whole) = (SystemTime::UNIX_EPOCH, Duration::from_secs(seconds.unsigned_abs()));
        let time = if seconds < 0 { epoch - whole } else { epoch + whole };
        time + Duration::from_nanos(nanos.into())
    })
}

fn headers() -> impl Strategy<Value = Headers> {
    vec(("[a-z0-9]{1,20}", option::of(text(20))), 0..8).prop_map(|pairs| {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            // A name that happens to be reserved is left out.
            let _ = headers.insert(&name, value.unwrap_or_default());
        }
        headers
    })
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => no_event(), 1 => event().prop_map(Bytes::from)]
}

fn no_event() -> impl Strategy<Value = Bytes> {
    let almost_json = one_of(&[
        "",
        "null",
        "true",
        " 1",
        "1 ",
        "1.50e+02",
        "123456789012345678901234567890.10",
        "\"\\u0041\\ud800\"",
        "\"\u{0}\"",
        "\"text\"",
        "{}{}",
        "{ \"a\" : 1, \"a\":2 }",
        "[1,\n2]",
        "\u{feff}{}",
        "\"\u{ffff}\"",
        "-",
        "\"open",
    ]);
    prop_oneof![
        vec(any::<u8>(), 0..64).prop_map(Bytes::from),
        text(20).prop_map(Bytes::from),
        almost_json.prop_map(Bytes::from),
    ]
}

/// A structured event, and one within it.
fn event() -> impl Strategy<Value = Vec<u8>> {
    (text(3), content_type(), any::<bool>()).prop_map(|(id, content_type, is_nested)| {
        let inner = Envelope::new("inner", "{\"a\":1}").with_id(id).with_content_type(content_type);
        let json = to_json(&inner, &Hop::default());
        if !is_nested {
            return json;
        }
        let outer = Envelope::new("outer", json).with_content_type("application/cloudevents+json");
        to_json(&outer, &Hop::default())
    })
}

fn content_type() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(&["application/json", "application/vnd.acme+JSON; charset=utf-8", "text/plain"]),
        one_of(&[
            "application/cloudevents",
            "application/cloudevents+json",
            "Application/CloudEvents+JSON; charset=utf-8",
            "application/cloudevents-batch+json",
        ]),
        "[ -~]{1,40}",
    ]
}

prop_compose! {
    fn envelope()(
        (id, r#type) in (text(40), text(40)),
        version in 1..=u32::MAX,
        source in prop_oneof![Just("anybroker".to_owned()), text(40)],
        (time, expires) in (time(), option::of(time())),
        ids in (option::of(text(40)), option::of(text(40)), option::of(text(40))),
        content_type in content_type(),
        headers in headers(),
        payload in payload(),
    ) -> Envelope {
        let mut envelope = Envelope::new(r#type, payload)
            .with_id(id)
            .with_version(version)
            .with_source(source)
            .with_content_type(content_type);
        envelope.time = time;
        envelope.expires = expires;
        (envelope.key, envelope.correlation_id, envelope.causation_id) = ids;
        envelope.headers = headers;
        envelope
    }
}

prop_compose! {
    fn failure()(
        (reason, error) in (".{0,10}", ".{0,100}"),
        (origin, group) in (".{0,10}", ".{0,10}"),
        at in time(),
    ) -> Failure {
        Failure::new(reason, error, origin, group, at)
    }
}

prop_compose! {
    fn hop()(
        id in option::of(text(40)),
        (attempts, unsettled) in any::<(u32, u32)>(),
        (not_before, first_failure) in (option::of(time()), option::of(time())),
        failure in option::of(failure()),
    ) -> Hop {
        Hop { id, attempts, unsettled, not_before, first_failure, failure: failure.map(Box::new) }
    }
}

/// Names that mean something, names that break a rule, and anything else.
fn soup_name() -> impl Strategy<Value = String> {
    let telling = one_of(&[
        "specversion",
        "id",
        "source",
        "type",
        "time",
        "datacontenttype",
        "schemaversion",
        "partitionkey",
        "expirytime",
        "notbefore",
        "abhop",
        "abattempts",
        "abunsettled",
        "abfirstfailure",
        "ablastfailure",
        "abreason",
        "data",
        "data_base64",
        "nativeheaders",
        "subject",
        "ID",
        "x-death",
        "",
    ]);
    prop_oneof![telling, "[a-z0-9]{1,21}", ".{0,8}"]
}

fn soup_value() -> impl Strategy<Value = String> {
    let telling = one_of(&[
        "",
        "1.0",
        "0",
        "4294967296",
        "-1",
        "abc",
        "2026-01-02T03:04:05Z",
        "9999-12-31T23:59:59Z",
        "2026-01-02T03:04:05.123456789+14:00",
        "2026-02-30T00:00:00Z",
        "{}",
        "{\"a\":1}",
        "[",
        "application/cloudevents+json",
    ]);
    prop_oneof![telling, ".{0,12}"]
}

fn json_value() -> impl Strategy<Value = String> {
    let telling = one_of(&[
        "null",
        "1",
        "-1.5e3",
        "true",
        "[1,{}]",
        "{\"a\":null}",
        "\"\\ud800\"",
        "\"YQ==\"",
        "{",
    ]);
    prop_oneof![telling, soup_value().prop_map(|text| Value::from(text).to_string())]
}

fn binary(envelope: &Envelope, hop: &Hop) -> (Envelope, Hop) {
    let mut reader = AttributeReader::new();
    write_attributes(envelope, hop, |name, value| reader.attribute(name, value));
    let content_type = Some(&*envelope.content_type);
    stored(reader.finish("other", Some("other"), content_type, envelope.payload.clone()))
}

fn structured(envelope: &Envelope, hop: &Hop) -> Result<(Envelope, Hop)> {
    from_json(&to_json(envelope, hop)).map(stored)
}

fn stored((envelope, hop): (Envelope, Option<Box<Hop>>)) -> (Envelope, Hop) {
    (envelope, *hop.unwrap_or_default())
}

proptest! {
    #[test]
    fn envelope_and_hop_survive_the_binary_encoding(envelope in envelope(), hop in hop()) {
        prop_assert_eq!(binary(&envelope, &hop), (envelope, hop));
    }

    #[test]
    fn an_event_is_itself_at_each_hop_in_both_modes(
        envelope in envelope(),
        hops in vec((hop(), any::<bool>()), 2..4),
        holds_itself in any::<bool>(),
    ) {
        let mut envelope = envelope;
        if holds_itself {
            envelope.payload = to_json(&envelope, &Hop::default()).into();
        }
        // As it comes from elsewhere, structured, and then as the copies of retries are stored.
        let mut read = structured(&envelope, &Hop::default())?.0;
        for (hop, is_binary) in hops {
            let stored = if is_binary { binary(&read, &hop) } else { structured(&read, &hop)? };
            prop_assert_eq!(&stored, &(envelope.clone(), hop));
            read = stored.0;
        }
    }

    #[test]
    fn an_event_beside_another_event_is_its_payload(
        envelope in envelope(),
        attributes_of_its_own in any::<bool>(),
    ) {
        let json = Bytes::from(to_json(&envelope, &Hop::default()));
        let outer = ("id", "outer");
        let mut reader = AttributeReader::new();
        for (name, value) in [outer, ("source", "s"), ("type", "t"), ("specversion", "1.0")] {
            reader.attribute(name, value);
        }
        let content_type = Some("application/cloudevents+json");
        let (read, _) = reader.finish("other", None, content_type, json.clone());
        prop_assert_eq!((&*read.id, &read.payload), ("outer", &json));
        prop_assert_eq!(&read.content_type, "application/cloudevents+json");

        // Attributes of the same event may stand beside it for those who route by them.
        let mut reader = AttributeReader::new();
        if attributes_of_its_own {
            for (name, value) in
                [("id", &*envelope.id), ("source", &*envelope.source), ("type", &*envelope.r#type)]
            {
                reader.attribute(name, value);
            }
        }
        let read = reader.finish("other", None, content_type, json);
        prop_assert_eq!(stored(read), (envelope, Hop::default()));
    }

    #[test]
    fn no_attribute_is_written_twice(envelope in envelope(), hop in hop()) {
        let mut names = Vec::new();
        write_attributes(&envelope, &hop, |name, _| names.push(name.to_owned()));
        let count = names.len();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), count);
        prop_assert!(names.iter().all(|name| name.len() <= 20));
    }

    #[test]
    fn envelope_and_hop_survive_the_structured_encoding(envelope in envelope(), hop in hop()) {
        prop_assert_eq!(structured(&envelope, &hop)?, (envelope.clone(), hop.clone()));
        let json = to_json(&envelope, &hop);
        let content_type = Some("Application/CloudEvents+json; charset=utf-8");
        let read = AttributeReader::new().finish("other", Some("other"), content_type, json.into());
        prop_assert_eq!(stored(read), (envelope, hop));
    }

    #[test]
    fn any_attributes_are_read_and_leave_the_payload_alone(
        attributes in vec((soup_name(), soup_value(), any::<bool>()), 0..40),
        message_id in option::of(".{0,10}"),
        content_type in option::of(soup_value()),
        payload in no_event(),
    ) {
        let mut reader = AttributeReader::new();
        for (name, value, native) in &attributes {
            if *native {
                reader.native(name, value.as_str().into());
            } else {
                reader.attribute(name, value);
            }
        }
        let (message_id, content_type) = (message_id.as_deref(), content_type.as_deref());
        let read = reader.finish("default", message_id, content_type, payload.clone());
        let (envelope, hop) = stored(read);
        prop_assert_eq!(&envelope.payload, &payload);
        prop_assert!(!envelope.id.is_empty() && !envelope.r#type.is_empty());
        prop_assert!(!envelope.source.is_empty() && !envelope.content_type.is_empty());
        // What was read once is stable: the copy that a retry stores reads the same.
        prop_assert_eq!(binary(&envelope, &hop), (envelope, hop));
    }

    #[test]
    fn any_bytes_that_claim_to_be_structured_are_delivered(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(from_json(&bytes).is_err());
        let bytes = Bytes::from(bytes);
        let content_type = Some("application/cloudevents+json");
        let (envelope, _) =
            AttributeReader::new().finish("orders", Some("7"), content_type, bytes.clone());
        prop_assert_eq!(envelope.payload, bytes);
        prop_assert_eq!((&*envelope.r#type, &*envelope.id), ("orders", "7"));
    }

    #[test]
    fn any_members_are_read_or_refused(members in vec((soup_name(), json_value()), 0..20)) {
        let mut json = r#"{"specversion":"1.0","id":"1","source":"s","type":"t""#.to_owned();
        for (name, value) in members {
            json = format!("{json},{}:{value}", Value::from(name));
        }
        json.push('}');
        if let Ok((envelope, hop)) = from_json(json.as_bytes()).map(stored) {
            prop_assert_eq!((&*envelope.id, &*envelope.source, &*envelope.r#type), ("1", "s", "t"));
            prop_assert_eq!(structured(&envelope, &hop)?, (envelope, hop));
        }
    }
}

#[cfg(feature = "json")]
proptest! {
    #[test]
    fn json_keeps_every_bit_of_a_number(bits in any::<u64>(), other in any::<f64>()) {
        use anybroker_core::{Codec, Json};

        for number in [f64::from_bits(bits), other] {
            if number.is_finite() {
                let json = <Json as Codec<f64>>::encode(&number).expect("a finite number");
                let read: f64 = Json::decode(&json).expect("a number");
                prop_assert_eq!(read.to_bits(), number.to_bits(), "{}", number);
            }
        }
    }
}
