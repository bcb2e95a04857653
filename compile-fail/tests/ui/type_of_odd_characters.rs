use anybroker::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order_placed/x y")]
struct OrderPlaced {
    order_id: String,
}

fn main() {}
