use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 2)]
struct OrderCreatedV1 {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 2, previous = OrderCreatedV1)]
struct OrderCreated {
    order_id: String,
}

impl From<OrderCreatedV1> for OrderCreated {
    fn from(old: OrderCreatedV1) -> Self {
        Self { order_id: old.order_id }
    }
}

fn main() {}
