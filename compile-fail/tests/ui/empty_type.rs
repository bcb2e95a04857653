use anybroker::Command;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Command)]
#[command(type = "")]
struct PlaceOrder {
    order_id: String,
}

fn main() {}
