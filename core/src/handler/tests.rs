use std::convert::Infallible;
use std::panic::panic_any;
use std::sync::Arc;
use std::time::Duration;

use anybroker_macros::Command;
use serde::{Deserialize, Serialize};
use tower::{Service, ServiceExt as _};

use super::*;
use crate::{Envelope, Error, ErrorKind, RetryClass, Subscription, permanent, retry_class};

#[derive(Debug, PartialEq, Serialize, Deserialize, Command)]
#[command(type = "count", crate = crate)]
pub(crate) struct Count(pub(crate) u32);

/// A message as the worker makes it.
pub(crate) fn message(envelope: Envelope) -> Message {
    Message::new(Arc::new(envelope), Arc::new(Subscription::queue("count")), 1)
}

pub(crate) fn count(number: u32) -> Message {
    message(Count(number).to_envelope().unwrap())
}

fn is_handler<S: Handler + Sync>(handler: S) -> S {
    handler
}

async fn answer(handler: impl Handler, message: Message) -> Result<Outcome, BoxError> {
    handler.oneshot(message).await.map_err(Into::into)
}

#[tokio::test]
async fn function_gets_the_typed_message_and_the_envelope() {
    async fn handle(count: Count, message: Message) -> Outcome {
        assert_eq!(count, Count(7));
        assert_eq!(message.envelope().r#type, "count");
        Outcome::Release { after: Duration::from_secs(count.0.into()) }
    }
    let outcome = answer(is_handler(handler_fn(handle)), count(7)).await.unwrap();
    assert_eq!(outcome, Outcome::Release { after: Duration::from_secs(7) });
}

#[tokio::test]
async fn answers_turn_into_outcomes() {
    let unit = handler_fn(|_: Count, _| async {});
    assert_eq!(answer(unit, count(1)).await.unwrap(), Outcome::Ack);

    let outcome = handler_fn(|_: Count, _| async { Outcome::dead_letter("odd", "1") });
    assert_eq!(answer(outcome, count(1)).await.unwrap(), Outcome::dead_letter("odd", "1"));

    let nested = handler_fn(async |_: Count, _| -> Result<Result<Outcome, Infallible>, String> {
        Ok(Ok(Outcome::Ack))
    });
    assert_eq!(answer(nested, count(1)).await.unwrap(), Outcome::Ack);

    let failing = handler_fn(|_: Count, _| async {
        let _: u8 = "x".parse()?;
        Ok::<_, BoxError>(())
    });
    let error = answer(failing, count(1)).await.unwrap_err();
    assert!(error.is::<std::num::ParseIntError>());

    let giving_up = handler_fn(|_: Count, _| async { Err::<(), _>(permanent("no such order")) });
    let error = answer(giving_up, count(1)).await.unwrap_err();
    assert_eq!(retry_class(&error), RetryClass::Permanent);
}

#[tokio::test]
async fn undecodable_payload_is_permanent_and_calls_nothing() {
    let handler = handler_fn(async |_: Count, _| -> () { unreachable!("it does not decode") });
    for envelope in [Envelope::new("count", "x"), Envelope::new("other", "1")] {
        let error = answer(handler.clone(), message(envelope)).await.unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::Undecodable);
        assert_eq!(retry_class(&error), RetryClass::Permanent);
    }
}

#[tokio::test]
async fn panics_become_errors_with_their_text_that_are_retried() {
    async fn polled(count: Count, _: Message) {
        panic!("polled with {}", count.0)
    }
    let created = handler_fn(|_: Count, _| -> std::future::Ready<()> { panic!("created") });
    let textless = handler_fn(async |_: Count, _| -> () { panic_any(7) });
    for (error, text) in [
        (answer(created, count(1)).await, "the handler panicked: created"),
        (answer(handler_fn(polled), count(1)).await, "the handler panicked: polled with 1"),
        (answer(textless, count(1)).await, "the handler panicked: with a value that is no text"),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(retry_class(&error), RetryClass::Transient);
    }
}

#[tokio::test]
async fn handler_works_after_a_panic() {
    let mut handler = handler_fn(|count: Count, _| async move { assert!(count.0 > 0, "zero") });
    assert!(handler.call(count(0)).await.is_err());
    assert_eq!(handler.call(count(1)).await.unwrap(), Outcome::Ack);
}
