use std::sync::Arc;

use anybroker_core::{Broker, Delivery, Subscription};

use super::case::Checked;
use super::lab::Lab;
use super::receiver::Receiver;

/// A consumer with a connection of its own, as another process would have it, that can crash.
pub(super) struct Process {
    broker: Arc<dyn Broker>,
    pub(super) receiver: Receiver,
}

impl Process {
    pub(super) async fn start(lab: &Lab, subscription: &Subscription) -> Checked<Self> {
        let broker = lab.connect().await?;
        let receiver = Receiver::open(&broker, subscription, 16).await?;
        Ok(Self { broker, receiver })
    }

    /// Ends in order.
    pub(super) async fn end(self) -> Checked {
        self.receiver.close().await?;
        self.broker.close().await?;
        Ok(())
    }

    /// Ends as a killed process does, as far as the broker can see: its connection goes, and
    /// nobody settles or gives back what it held.
    pub(super) async fn crash(self, held: Vec<Delivery>) -> Checked {
        held.into_iter().for_each(std::mem::forget);
        self.broker.close().await?;
        Ok(())
    }
}
