use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated<T> {
    order: T,
}

fn main() {}
