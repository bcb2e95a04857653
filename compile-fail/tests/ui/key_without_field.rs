use anybroker::{Command, Event};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", key = "orderid")]
struct OrderCreated {
    order_id: String,
    total_cents: u64,
}

#[derive(Serialize, Deserialize, Command)]
#[command(type = "order.place", key = "order_id")]
enum PlaceOrder {
    AtOnce { order_id: String },
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.cancelled", key = "order_id")]
struct OrderCancelled {
    order_id: Vec<u8>,
}

fn main() {}
