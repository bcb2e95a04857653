use anybroker::{Outcome, adapter::Delivery};

async fn settle(delivery: Delivery) -> anybroker::Result<()> {
    delivery.settle(Outcome::Ack).await?;
    delivery.settle(Outcome::Ack).await
}

fn main() {}
