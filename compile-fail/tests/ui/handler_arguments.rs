use anybroker::{Event, Message, handler_fn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

async fn swapped(message: Message, event: OrderCreated) {
    println!("{} {:?}", event.order_id, message);
}

fn main() {
    handler_fn(|event: OrderCreated| async move { println!("{}", event.order_id) });
    handler_fn(|text: String, _: Message| async move { println!("{text}") });
    handler_fn(swapped);
    handler_fn(|event: OrderCreated, _| println!("{}", event.order_id));
}
