use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{Consumer, Delivery, Error, ErrorKind, Outcome, Result, Settler};

/// The consumer of an adapter that reads in a task of its own: the reader pushes deliveries, the
/// worker takes them.
///
/// The reader ends when [`InboxSender::closed`] resolves: it stops the broker's stream, flushes
/// its settlements and drops the sender, which is what [`Consumer::close`] waits for.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Result<Delivery>>,
    taken: Vec<Result<Delivery>>,
    lease: Option<(Arc<dyn Settler>, Duration)>,
}

/// The reader's end of an [`Inbox`].
#[derive(Clone, Debug)]
pub struct InboxSender(mpsc::Sender<Result<Delivery>>);

impl Inbox {
    /// Makes both ends; `capacity` deliveries wait at most.
    pub fn channel(capacity: usize) -> (InboxSender, Self) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        (InboxSender(sender), Self { receiver, taken: Vec::new(), lease: None })
    }

    /// States that deliveries are leased, for how long, and who renews them.
    pub fn leased(mut self, settler: Arc<dyn Settler>, lease: Duration) -> Self {
        self.lease = Some((settler, lease));
        self
    }
}

impl InboxSender {
    /// Hands a delivery over, waiting for room. The delivery comes back to the broker when the
    /// consumer is gone.
    ///
    /// # Errors
    /// `Closed` when the consumer is gone.
    pub async fn deliver(&self, delivery: Delivery) -> Result<()> {
        self.0.send(Ok(delivery)).await.map_err(|_| closed())
    }

    /// Tells the consumer of an error; it is the next thing it receives.
    ///
    /// # Errors
    /// `Closed` when the consumer is gone.
    pub async fn fail(&self, error: Error) -> Result<()> {
        self.0.send(Err(error)).await.map_err(|_| closed())
    }

    /// Resolves when the consumer is closed or gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the consumer is closed")
}

#[async_trait]
impl Consumer for Inbox {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        if self.taken.is_empty() {
            let count = std::task::ready!(self.receiver.poll_recv_many(cx, &mut self.taken, max));
            if count == 0 {
                return Poll::Ready(if max == 0 { Ok(()) } else { Err(closed()) });
            }
        }
        // What came before an error is handed out first; the error is the next poll's answer.
        let count = self.taken.iter().take(max).take_while(|item| item.is_ok()).count();
        if count == 0 && max > 0 {
            return Poll::Ready(self.taken.remove(0).map(|delivery| out.push(delivery)));
        }
        out.extend(self.taken.drain(..count).flatten());
        Poll::Ready(Ok(()))
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        self.lease.clone()
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.receiver.close();
        let mut released = Vec::new();
        for delivery in self.taken.drain(..).flatten() {
            released.push(delivery.settle(Outcome::Release { after: Duration::ZERO }));
        }
        // Ends when the reader has dropped its sender, and with it finished its settlements.
        while let Some(item) = self.receiver.recv().await {
            if let Ok(delivery) = item {
                released.push(delivery.settle(Outcome::Release { after: Duration::ZERO }));
            }
        }
        for confirmation in released {
            // A release that fails leaves the delivery to come back by itself.
            let _ = confirmation.await;
        }
        Ok(())
    }
}
