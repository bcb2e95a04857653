use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", topic = "orders")]
struct OrderCreated {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event = "order.created"]
struct OrderCreatedToo {
    order_id: String,
}

fn main() {}
