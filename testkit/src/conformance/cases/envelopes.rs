//! What is published arrives as it was, whatever happens on the way.

use std::time::Duration;

use anybroker_core::{
    DeadLetterFilter, Destination, Envelope, ErrorKind, Outcome, Outgoing, Redrive, Subscription,
    now,
};

use crate::conformance::case::{Checked, cases};
use crate::conformance::lab::{self, Lab, QUIET, message, refused, same};

cases! {
    every_field_arrives_as_it_was_sent;
    an_envelope_of_defaults_arrives_as_it_was_sent;
    every_byte_of_a_payload_arrives;
    texts_in_unicode_arrive;
    texts_at_their_limits_arrive;
    an_envelope_survives_retry_dead_letter_and_redrive;
    an_invalid_envelope_is_refused;
}

fn full() -> Checked<Envelope> {
    Ok(Envelope::new("order.created", &b"\x00\xff{\"total\": 7}\r\n"[..])
        .with_id("order/7?a=b&c=%20")
        .with_version(3)
        .with_source("https://shop.example/orders#created")
        .with_key("customer-7")
        .with_content_type("application/octet-stream; charset=binary")
        .with_correlation_id("conversation 7")
        .with_causation_id("cause 7")
        .with_expires(now() + Duration::from_hours(1))
        .with_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")?
        .with_header("empty", "")?
        .with_header("tenant", "acme, inc")?)
}

/// Sends an envelope to a queue and to a group, and compares what arrives.
async fn arrives(lab: &Lab, envelope: Envelope) -> Checked {
    let queue = lab::queue();
    let (destination, group) = lab.group("all");
    lab.broker().declare(&group).await?;
    for (destination, subscription) in
        [(Destination::from(queue.clone()), Subscription::queue(queue)), (destination, group)]
    {
        lab.publish(destination, [envelope.clone()]).await?;
        let mut receiver = lab.consume(&subscription).await?;
        let delivery = receiver.next().await?;
        same(delivery.envelope(), &envelope);
        assert_eq!(delivery.attempt(), 1);
        assert_eq!(*delivery.hop(), anybroker_core::Hop::default());
        delivery.settle(Outcome::Ack).await?;
    }
    Ok(())
}

async fn every_field_arrives_as_it_was_sent(lab: Lab) -> Checked {
    arrives(&lab, full()?).await
}

async fn an_envelope_of_defaults_arrives_as_it_was_sent(lab: Lab) -> Checked {
    arrives(&lab, Envelope::new("nothing.happened", "")).await
}

async fn every_byte_of_a_payload_arrives(lab: Lab) -> Checked {
    let bytes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let envelope = Envelope::new("blob", bytes).with_content_type("application/octet-stream");
    arrives(&lab, envelope).await
}

async fn texts_in_unicode_arrive(lab: Lab) -> Checked {
    let text = "größe ✓ 🚀 \u{1f468}\u{200d}\u{1f469} \"quoted\" back\\slash % 100%25 \t日本語";
    let envelope = Envelope::new("grüße.gesendet", format!("{{\"text\":{text:?}}}"))
        .with_id(text)
        .with_source("urn:größe")
        .with_key(text)
        .with_correlation_id(text)
        .with_causation_id(text)
        .with_header("text", text)?;
    arrives(&lab, envelope).await
}

async fn texts_at_their_limits_arrive(lab: Lab) -> Checked {
    let (short, long) = ("x".repeat(255), "y".repeat(1024));
    let envelope = Envelope::new(short.clone(), "{}")
        .with_id(short.clone())
        .with_source(long)
        .with_key(short.clone())
        .with_content_type(short.clone())
        .with_correlation_id(short.clone())
        .with_causation_id(short)
        .with_version(u32::MAX)
        .with_header("abcdefghijklmnopqrst", "z".repeat(40 * 1024))?;
    envelope.validate()?;
    arrives(&lab, envelope).await
}

async fn an_envelope_survives_retry_dead_letter_and_redrive(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let envelope = full()?;
    lab.publish(queue, [envelope.clone()]).await?;
    let mut receiver = lab.consume(&subscription).await?;
    lab.step("retry at once, later, and release");
    for outcome in [
        Outcome::Retry { after: Duration::ZERO },
        Outcome::Retry { after: Duration::from_millis(1200) },
        Outcome::Release { after: Duration::ZERO },
        Outcome::Release { after: Duration::from_millis(1200) },
        Outcome::dead_letter("test", "for the test"),
    ] {
        let delivery = receiver.next().await?;
        same(delivery.envelope(), &envelope);
        delivery.settle(outcome).await?;
    }
    lab.step("dead letter");
    let peek = lab.broker().dead_letters(&subscription, &DeadLetterFilter::all(), 10).await?;
    assert_eq!(peek.entries.len(), 1);
    same(&peek.entries[0].envelope, &envelope);
    lab.step("redrive");
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 1);
    let delivery = receiver.next().await?;
    same(delivery.envelope(), &envelope);
    delivery.settle(Outcome::Ack).await?;
    Ok(())
}

async fn an_invalid_envelope_is_refused(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let mut receiver = lab.consume(&subscription).await?;
    let producer = lab.broker().producer();
    for (what, envelope) in [
        ("an empty id", message("")),
        ("a long id", message(&"x".repeat(257))),
        ("version 0", message("m0").with_version(0)),
        ("an empty type", Envelope::new("", "")),
        ("a content type with a line break", message("m0").with_content_type("a\r\nb")),
        ("long headers", message("m0").with_header("long", "x".repeat(45 * 1024))?),
    ] {
        lab.step(what);
        refused(ErrorKind::Invalid, producer.send(Outgoing::new(queue.clone(), envelope))).await?;
    }
    lab.step("the producer still works");
    receiver.quiet(QUIET).await?;
    lab.publish(queue, [message("m0")]).await?;
    receiver.ack(1).await?;
    Ok(())
}
