use std::time::Duration;

use anybroker::{Event, Message, batch_handler_fn, handler_fn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

#[derive(Debug)]
struct NotAnError;

async fn broken(_: OrderCreated, _: Message) -> Result<(), NotAnError> {
    Err(NotAnError)
}

async fn all_or_nothing(_: Vec<(OrderCreated, Message)>) -> Result<(), String> {
    Ok(())
}

fn main() {
    handler_fn(|event: OrderCreated, _| async move { event.order_id.len() });
    handler_fn(broken);
    batch_handler_fn(10, Duration::from_millis(10), all_or_nothing);
    batch_handler_fn(10, Duration::from_millis(10), async |batch: Vec<(OrderCreated, Message)>| {
        batch.iter().map(|(event, _)| event.order_id.len()).collect::<Vec<_>>()
    });
}
