use std::rc::Rc;

use anybroker::{Event, Message, handler_fn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

async fn handle(event: OrderCreated, _: Message) {
    let id = Rc::new(event.order_id);
    std::future::ready(()).await;
    println!("{id}");
}

fn main() {
    handler_fn(handle);
}
