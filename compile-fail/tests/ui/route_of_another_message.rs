use anybroker::{Event, Router, handler_fn};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.cancelled")]
struct OrderCancelled {
    order_id: String,
}

fn main() {
    let _ = Router::new().route::<OrderCreated, _>(handler_fn(|_: OrderCancelled, _| async {}));
}
