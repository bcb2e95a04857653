use anybroker::{Event, Message, Router};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

async fn handle(event: OrderCreated, _: Message) {
    println!("{}", event.order_id);
}

fn main() {
    let _ = Router::new().route::<OrderCreated, _>(handle);
}
