use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anybroker_core::{
    Confirmation, Confirmer, Consumer, Delivery, Error, Outcome, Result, Settler,
};
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Connection;
use crate::error::{closed, error};

/// What the task of a consumer, its keeper, is asked to do.
pub(crate) enum Job {
    Receive(Request),
    Settle(Box<Delivery>, Outcome, Confirmer),
    Renew(Vec<u64>, Confirmer),
    Abandon(u64),
    /// Answered when all that came before is done.
    Flush(Confirmer),
}

/// A wish for up to so many deliveries. It ends when the other end of `answer` is dropped.
pub(crate) struct Request {
    pub(crate) max: usize,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) answer: oneshot::Sender<Result<Unseen>>,
}

/// Deliveries that no handler has seen: dropped, they are released, which is no attempt.
#[derive(Debug, Default)]
pub(crate) struct Unseen(pub(crate) Vec<Delivery>);

impl Drop for Unseen {
    fn drop(&mut self) {
        for delivery in self.0.drain(..) {
            drop(delivery.settle(Outcome::Release { after: Duration::ZERO }));
        }
    }
}

/// Receives by asking: a delivery is only taken when there is somebody to hand it to, since nobody
/// would renew its lease while it waits.
#[derive(Debug)]
pub(crate) struct FolderConsumer {
    pub(crate) settler: Arc<FolderSettler>,
    pub(crate) lease: Duration,
    pub(crate) asked: Option<oneshot::Receiver<Result<Unseen>>>,
    /// What came when less was asked for than before.
    pub(crate) rest: Unseen,
    /// Open as long as something consumes on it.
    pub(crate) _connection: Arc<Connection>,
}

#[async_trait]
impl Consumer for FolderConsumer {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        if max == 0 {
            self.asked = None;
            return Poll::Ready(Ok(()));
        }
        if self.rest.0.is_empty() {
            let asked = self.asked.get_or_insert_with(|| self.settler.receive(max));
            let answer = ready!(Pin::new(asked).poll(cx));
            self.asked = None;
            self.rest = answer.unwrap_or_else(|_| Err(closed().operation("receive")))?;
        }
        let count = self.rest.0.len().min(max);
        out.extend(self.rest.0.drain(..count));
        Poll::Ready(Ok(()))
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        Some((self.settler.clone(), self.lease))
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.asked = None;
        self.rest = Unseen::default();
        let (confirmer, flushed) = Confirmation::channel();
        // With a closed connection, the keeper has flushed already.
        if self.settler.0.send(Job::Flush(confirmer)).is_err() { Ok(()) } else { flushed.await }
    }
}

/// Passes settlements on to the keeper, in the order of the calls.
#[derive(Debug)]
pub(crate) struct FolderSettler(pub(crate) mpsc::UnboundedSender<Job>);

impl FolderSettler {
    fn receive(self: &Arc<Self>, max: usize) -> oneshot::Receiver<Result<Unseen>> {
        let (answer, answered) = oneshot::channel();
        // If the keeper has ended, the answer is dropped, which tells it.
        let _ = self.0.send(Job::Receive(Request { max, settler: self.clone(), answer }));
        answered
    }
}

impl Settler for FolderSettler {
    fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        match self.0.send(Job::Settle(Box::new(delivery), outcome, confirmer)) {
            Ok(()) => confirmation,
            Err(_) => Confirmation::ready(Err(stale())),
        }
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        // If the keeper has ended, the confirmer is dropped, which is an error too.
        let _ = self.0.send(Job::Renew(tags.to_vec(), confirmer));
        confirmation
    }

    fn abandon(&self, tag: u64) {
        // If the keeper has ended, it has given everything back.
        let _ = self.0.send(Job::Abandon(tag));
    }

    fn is_lost(&self, _tag: u64) -> bool {
        self.0.is_closed()
    }
}

pub(crate) fn stale() -> Error {
    let text = "its lease ran out or the broker was closed, and the message was given back";
    error(anybroker_core::ErrorKind::StaleDelivery, text).operation("settle")
}
