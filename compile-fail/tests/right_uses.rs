//! What must compile, beside the wrong uses that must not: the derives through the facade, and
//! every form of handler that the documentation shows.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anybroker::{
    BoxError, Event, Handler, Message, Outcome, Router, TypedMessage, batch_handler_fn, handler_fn,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", key = "order_id")]
struct OrderCreated {
    order_id: u64,
}

/// A derive may come out of another macro, where names have other contexts.
macro_rules! event {
    ($name:ident, $type:literal, $field:ident, $key:literal, $previous:ty) => {
        #[derive(Serialize, Deserialize, anybroker::Event)]
        #[event(type = $type, version = 2, key = $key, previous = $previous)]
        struct $name {
            $field: u64,
        }
    };
}

event!(OrderCreatedV2, "order.created", order_id, "order_id", OrderCreated);

impl From<OrderCreated> for OrderCreatedV2 {
    fn from(old: OrderCreated) -> Self {
        Self { order_id: old.order_id }
    }
}

async fn function(_: OrderCreated, _: Message) -> Result<Outcome, BoxError> {
    Ok(Outcome::Ack)
}

async fn batch(batch: Vec<(OrderCreated, Message)>) -> Vec<Result<(), BoxError>> {
    batch.iter().map(|_| Ok(())).collect()
}

fn is_handler(_: impl Handler + Sync) {}

#[test]
fn derives_work_through_the_facade_and_out_of_other_macros() {
    let envelope = OrderCreated { order_id: 7 }.to_envelope().unwrap();
    assert_eq!(OrderCreatedV2::from_envelope(&envelope).unwrap().order_id, 7);
    let key = OrderCreatedV2 { order_id: 7 }.to_envelope().unwrap().key;
    assert_eq!(key.as_deref(), Some("7"));
}

#[test]
fn documented_forms_are_handlers() {
    is_handler(handler_fn(function));
    is_handler(handler_fn(|event: OrderCreated, _| async move {
        let _: u32 = event.order_id.try_into()?;
        Ok::<_, BoxError>(())
    }));
    is_handler(handler_fn(async |event: OrderCreated, message: Message| -> Result<(), String> {
        Err(format!("{} {}", event.order_id, message.attempt()))
    }));
    let shared = Arc::new(String::from("template"));
    is_handler(handler_fn(move |_: OrderCreated, _| {
        let shared = Arc::clone(&shared);
        async move { println!("{shared}") }
    }));
    is_handler(handler_fn(|_: OrderCreated, _| async {
        // Not `Send`, but gone before the next await.
        drop(Rc::new(1));
        std::future::ready(()).await;
    }));
    is_handler(batch_handler_fn(10, Duration::from_millis(10), batch));
    is_handler(Router::new().route::<OrderCreated, _>(handler_fn(function)));
}
