use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 0)]
struct OrderCreated {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = "2")]
struct OrderCreatedAgain {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 1, version = 2)]
struct OrderCreatedTwice {
    order_id: String,
}

fn main() {}
