use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.cancelled")]
struct OrderCancelled {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created", version = 2, previous = OrderCancelled)]
struct OrderCreated {
    order_id: String,
}

impl From<OrderCancelled> for OrderCreated {
    fn from(old: OrderCancelled) -> Self {
        Self { order_id: old.order_id }
    }
}

fn main() {}
