use anybroker::Event;

#[derive(Event)]
#[event(type = "order.created")]
struct OrderCreated {
    order_id: String,
}

fn main() {}
