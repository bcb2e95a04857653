use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreatedV1 {
    order_id: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 2, previous = OrderCreatedV1)]
struct OrderCreated {
    order_id: String,
}

fn main() {}
