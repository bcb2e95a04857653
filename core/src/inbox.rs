use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::{Confirmation, Consumer, Delivery, Error, ErrorKind, Outcome, Result, Settler};

/// The consumer of an adapter that reads in a task of its own: the reader pushes deliveries, the
/// worker takes them.
///
/// What waits here is not renewed by the worker: where deliveries are leased, the adapter renews
/// it, or reads no more than the worker takes at once. It is not told when a delivery leaves: to
/// know, wrap the inbox, and look at what its `poll_receive` hands out.
///
/// The reader ends when [`InboxSender::closed`] resolves: it stops the broker's stream, flushes
/// its settlements and drops the sender, which is what [`Consumer::close`] waits for.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Item>,
    items: Vec<Item>,
    taken: VecDeque<Result<Delivery>>,
    lease: Option<(Arc<dyn Settler>, Duration)>,
    /// Receives nothing; ends when the reader has dropped its senders.
    reader: mpsc::Receiver<Infallible>,
}

/// The reader's end of an [`Inbox`].
#[derive(Clone, Debug)]
pub struct InboxSender {
    items: mpsc::Sender<Item>,
    _alive: mpsc::Sender<Infallible>,
}

/// What is handed over at once: its consumer is woken once for all of it.
#[derive(Debug)]
enum Item {
    One(Result<Delivery>),
    Lot(Vec<Delivery>),
}

impl Inbox {
    /// The capacity for a reader that itself counts what its consumer holds, since its prefetch may
    /// grow: the inbox is never full before the reader is.
    pub const COUNTED: usize = u16::MAX as usize;

    /// Makes both ends; `capacity` deliveries, or lots of them, wait at most.
    pub fn channel(capacity: usize) -> (InboxSender, Self) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let (alive, reader) = mpsc::channel(1);
        let inbox =
            Self { receiver, items: Vec::new(), taken: VecDeque::new(), lease: None, reader };
        (InboxSender { items: sender, _alive: alive }, inbox)
    }

    /// States that deliveries are leased, for how long, and who renews them.
    pub fn leased(mut self, settler: Arc<dyn Settler>, lease: Duration) -> Self {
        self.lease = Some((settler, lease));
        self
    }
}

impl Item {
    fn deliveries(self) -> Vec<Delivery> {
        match self {
            Self::One(one) => one.into_iter().collect(),
            Self::Lot(lot) => lot,
        }
    }
}

impl InboxSender {
    /// Hands a delivery over, waiting for room. The delivery is released when the consumer is
    /// gone.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it releases the delivery, which costs no attempt.
    ///
    /// # Errors
    /// `Closed` when the consumer is gone.
    pub async fn deliver(&self, delivery: Delivery) -> Result<()> {
        let mut unsent = Unsent(Some(delivery));
        let place = self.items.reserve().await.map_err(|_| closed())?;
        if let Some(delivery) = unsent.0.take() {
            place.send(Item::One(Ok(delivery)));
        }
        Ok(())
    }

    /// Hands deliveries over without waiting, and wakes the consumer once for all of them: for a
    /// reader that keeps count of what its consumer holds. They are released on an error.
    ///
    /// A lot takes one place of the capacity, however many deliveries it has.
    ///
    /// # Errors
    /// `Closed` when the consumer is gone, `Blocked` when it has no place left.
    pub fn deliver_lot(&self, lot: Vec<Delivery>) -> Result<()> {
        self.items.try_send(Item::Lot(lot)).map_err(|unsent| match unsent {
            TrySendError::Closed(lot) => release(lot),
            TrySendError::Full(lot) => {
                release(lot);
                Error::new(ErrorKind::Blocked, "the consumer has no place left")
            }
        })
    }

    /// Tells the consumer of an error; it is the next thing it receives.
    ///
    /// # Errors
    /// `Closed` when the consumer is gone.
    pub async fn fail(&self, error: Error) -> Result<()> {
        self.items.send(Item::One(Err(error))).await.map_err(|_| closed())
    }

    /// Resolves when the consumer is closed or gone.
    pub async fn closed(&self) {
        self.items.closed().await;
    }
}

/// Answers that the consumer is gone, and releases what was to be handed over.
/// A delivery that is released unless it is taken.
struct Unsent(Option<Delivery>);

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(delivery) = self.0.take() {
            drop(give_back(delivery));
        }
    }
}

fn release(unsent: Item) -> Error {
    for delivery in unsent.deliveries() {
        // Not awaited: the reader, which calls this, may have a part in it.
        drop(give_back(delivery));
    }
    closed()
}

/// Gives back what no handler has seen, so that it does not count. A release that fails leaves it
/// to come back by itself.
fn give_back(delivery: Delivery) -> Confirmation {
    delivery.settle(Outcome::Release { after: Duration::ZERO })
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
        let before = out.len();
        if self.taken.is_empty() {
            let count = std::task::ready!(self.receiver.poll_recv_many(cx, &mut self.items, max));
            if count == 0 {
                return Poll::Ready(if max == 0 { Ok(()) } else { Err(closed()) });
            }
            for item in self.items.drain(..) {
                match item {
                    Item::One(one) => self.taken.push_back(one),
                    // Most of the time all of them are wanted.
                    Item::Lot(mut lot)
                        if self.taken.is_empty() && out.len() - before + lot.len() <= max =>
                    {
                        out.append(&mut lot);
                    }
                    Item::Lot(lot) => self.taken.extend(lot.into_iter().map(Ok)),
                }
            }
        }
        // What came before an error is handed out first; the error is the next poll's answer.
        let more = max.saturating_sub(out.len() - before);
        let count = self.taken.iter().take(more).take_while(|item| item.is_ok()).count();
        if count == 0
            && more > 0
            && out.len() == before
            && let Some(item) = self.taken.pop_front()
        {
            return Poll::Ready(item.map(|delivery| out.push(delivery)));
        }
        out.extend(self.taken.drain(..count).flatten());
        Poll::Ready(Ok(()))
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        self.lease.clone()
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.receiver.close();
        let mut released: Vec<_> = self.taken.drain(..).flatten().map(give_back).collect();
        while let Some(item) = self.receiver.recv().await {
            released.extend(item.deliveries().into_iter().map(give_back));
        }
        // The channel ends when it is closed and empty, whether or not the reader is still there.
        self.reader.recv().await;
        for confirmation in released {
            let _ = confirmation.await;
        }
        Ok(())
    }
}

/// Gives back what no handler has seen, as [`Consumer::close`] does, without waiting.
impl Drop for Inbox {
    fn drop(&mut self) {
        self.receiver.close();
        let waiting = std::iter::from_fn(|| self.receiver.try_recv().ok());
        let waiting = waiting.flat_map(Item::deliveries);
        self.taken.drain(..).flatten().chain(waiting).map(give_back).for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::ops::Range;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::Envelope;

    /// Notes the tags it settles and abandons.
    #[derive(Debug, Default)]
    struct Recorder {
        released: Mutex<Vec<u64>>,
        abandoned: Mutex<Vec<u64>>,
    }

    impl Settler for Recorder {
        fn settle(&self, delivery: Delivery, outcome: Outcome) -> Confirmation {
            assert_eq!(outcome, Outcome::Release { after: Duration::ZERO });
            self.released.lock().expect("no panic").push(delivery.tag());
            Confirmation::ready(Ok(()))
        }

        fn abandon(&self, tag: u64) {
            self.abandoned.lock().expect("no panic").push(tag);
        }
    }

    impl Recorder {
        fn delivery(self: &Arc<Self>, tag: u64) -> Delivery {
            let envelope = Arc::new(Envelope::new("order.created", ""));
            Delivery::new(envelope, None, 0, tag, Arc::clone(self) as _)
        }

        fn released(&self) -> Vec<u64> {
            self.released.lock().expect("no panic").clone()
        }

        fn abandoned(&self) -> Vec<u64> {
            self.abandoned.lock().expect("no panic").clone()
        }
    }

    async fn receive(inbox: &mut Inbox, max: usize) -> Result<Vec<u64>> {
        let mut out = Vec::new();
        poll_fn(|cx| inbox.poll_receive(cx, max, &mut out)).await?;
        let tags = out.iter().map(Delivery::tag).collect();
        for delivery in out {
            drop(delivery.settle(Outcome::Release { after: Duration::ZERO }));
        }
        Ok(tags)
    }

    fn broken() -> Error {
        Error::new(ErrorKind::Unavailable, "the connection broke")
    }

    #[tokio::test]
    async fn deliveries_keep_their_order_and_an_error_its_place() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(16);
        for tag in 1..=3 {
            sender.deliver(recorder.delivery(tag)).await.expect("there is room");
        }
        sender.fail(broken()).await.expect("there is room");
        sender.deliver(recorder.delivery(4)).await.expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        sender.deliver(recorder.delivery(5)).await.expect("there is room");
        drop(sender);

        assert_eq!(receive(&mut inbox, 2).await.expect("deliveries"), [1, 2]);
        assert_eq!(receive(&mut inbox, 16).await.expect("deliveries"), [3]);
        let error = receive(&mut inbox, 16).await.expect_err("it broke");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(receive(&mut inbox, 1).await.expect("deliveries"), [4]);
        for _ in 0..2 {
            assert!(receive(&mut inbox, 16).await.is_err());
        }
        assert_eq!(receive(&mut inbox, 16).await.expect("deliveries"), [5]);
        for _ in 0..2 {
            let error = receive(&mut inbox, 16).await.expect_err("the reader is gone");
            assert_eq!(error.kind(), ErrorKind::Closed);
        }
    }

    #[tokio::test]
    async fn lots_are_handed_out_as_asked_for_and_before_an_error() {
        let recorder = Arc::new(Recorder::default());
        let lot = |tags: Range<u64>| tags.map(|tag| recorder.delivery(tag)).collect::<Vec<_>>();
        let (sender, mut inbox) = Inbox::channel(16);
        sender.deliver_lot(lot(1..4)).expect("there is room");
        sender.deliver_lot(lot(4..6)).expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        sender.deliver_lot(lot(6..8)).expect("there is room");
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [1, 2, 3, 4]);
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [5]);
        assert!(receive(&mut inbox, 4).await.is_err());
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [6, 7]);
        sender.deliver_lot(lot(8..10)).expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [8, 9]);
        assert!(receive(&mut inbox, 4).await.is_err());
    }

    #[tokio::test]
    async fn asking_for_nothing_takes_nothing() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(16);
        assert!(receive(&mut inbox, 0).await.expect("no error").is_empty());
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        assert!(receive(&mut inbox, 0).await.expect("no error").is_empty());
        assert_eq!(receive(&mut inbox, 2).await.expect("deliveries"), [1]);
        assert!(receive(&mut inbox, 0).await.expect("no error").is_empty());
        assert!(receive(&mut inbox, 1).await.is_err());
    }

    #[tokio::test]
    async fn a_poll_that_is_given_up_loses_nothing() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(16);
        let mut out = Vec::new();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(inbox.poll_receive(cx, 4, &mut out).is_pending());

        let waiting = tokio::spawn(async move { (receive(&mut inbox, 4).await, inbox) });
        tokio::task::yield_now().await;
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        let (received, mut inbox) = waiting.await.expect("it ends");
        assert_eq!(received.expect("a delivery"), [1], "the latest waker is woken");

        sender.fail(broken()).await.expect("there is room");
        sender.deliver(recorder.delivery(2)).await.expect("there is room");
        assert!(matches!(inbox.poll_receive(cx, 4, &mut out), Poll::Ready(Err(_))));
        assert!(out.is_empty());
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [2]);
    }

    #[tokio::test]
    async fn a_full_inbox_makes_the_reader_wait() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(1);
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        let second = recorder.delivery(2);
        let waiting = tokio::spawn(async move { sender.deliver(second).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [1]);
        waiting.await.expect("it ends").expect("there is room");
        assert_eq!(receive(&mut inbox, 4).await.expect("deliveries"), [2]);
    }

    #[tokio::test]
    async fn what_waits_for_room_is_released_when_its_reader_gives_up() {
        let recorder = Arc::new(Recorder::default());
        let (sender, _inbox) = Inbox::channel(1);
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        let waiting = sender.deliver(recorder.delivery(2));
        tokio::time::timeout(Duration::from_millis(1), waiting).await.expect_err("no room");
        assert_eq!((recorder.released(), recorder.abandoned()), (vec![2], vec![]));
    }

    #[tokio::test]
    async fn closing_gives_everything_back_and_waits_for_the_reader() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(4);
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        sender.fail(broken()).await.expect("there is room");
        sender.deliver(recorder.delivery(2)).await.expect("there is room");
        // Takes all three out of the channel, and hands out the first.
        let mut first = Vec::new();
        poll_fn(|cx| inbox.poll_receive(cx, 4, &mut first)).await.expect("a delivery");
        for tag in 3..=6 {
            sender.deliver(recorder.delivery(tag)).await.expect("there is room");
        }

        let late = recorder.delivery(7);
        let blocked = tokio::spawn({
            let sender = sender.clone();
            async move { sender.deliver(late).await }
        });
        tokio::task::yield_now().await;
        let closing = tokio::spawn(Box::new(inbox).close());
        sender.closed().await;
        let error = blocked.await.expect("it ends").expect_err("the consumer is closed");
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(sender.deliver(recorder.delivery(8)).await.is_err());
        tokio::task::yield_now().await;
        assert!(!closing.is_finished(), "the reader has yet to flush");
        drop(sender);
        closing.await.expect("it ends").expect("it closes");

        let mut released = recorder.released();
        released.sort_unstable();
        assert_eq!(released, [2, 3, 4, 5, 6, 7, 8], "no handler has seen them");
        drop(first);
        assert_eq!(recorder.abandoned(), [1]);
    }

    #[tokio::test]
    async fn dropping_the_consumer_releases_what_no_handler_saw() {
        let recorder = Arc::new(Recorder::default());
        let (sender, mut inbox) = Inbox::channel(4);
        sender.fail(broken()).await.expect("there is room");
        sender.deliver(recorder.delivery(1)).await.expect("there is room");
        assert!(receive(&mut inbox, 4).await.is_err());
        sender.deliver(recorder.delivery(2)).await.expect("there is room");
        drop(inbox);
        sender.closed().await;
        assert!(sender.deliver(recorder.delivery(3)).await.is_err());
        assert!(sender.fail(broken()).await.is_err());
        let mut released = recorder.released();
        released.sort_unstable();
        assert_eq!(released, [1, 2, 3]);
        assert!(recorder.abandoned().is_empty());
    }

    #[tokio::test]
    async fn a_lot_is_received_in_order_and_in_parts_and_wakes_once() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let recorder = Arc::new(Recorder::default());
        let lot = |tags: Range<u64>| tags.map(|tag| recorder.delivery(tag)).collect();
        let (sender, mut inbox) = Inbox::channel(2);
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        assert!(inbox.poll_receive(cx, 4, &mut Vec::new()).is_pending());
        sender.deliver_lot(lot(1..6)).expect("there is room");
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        sender.deliver(recorder.delivery(6)).await.expect("there is room");
        let error = sender.deliver_lot(lot(7..9)).expect_err("both places are taken");
        assert_eq!((error.kind(), recorder.released()), (ErrorKind::Blocked, vec![7, 8]));

        assert_eq!(receive(&mut inbox, 2).await.expect("deliveries"), [1, 2]);
        assert_eq!(receive(&mut inbox, 16).await.expect("deliveries"), [3, 4, 5, 6]);
        sender.deliver_lot(lot(9..12)).expect("there is room");
        assert_eq!(receive(&mut inbox, 1).await.expect("deliveries"), [9]);
        sender.deliver_lot(lot(12..14)).expect("there is room");
        drop(sender);
        Box::new(inbox).close().await.expect("it closes");
        let mut released = recorder.released();
        released.sort_unstable();
        assert_eq!(released, (1..14).collect::<Vec<_>>());
    }

    #[test]
    fn the_lease_is_passed_on() {
        let (_, inbox) = Inbox::channel(1);
        assert!(inbox.lease().is_none());
        let inbox = inbox.leased(Arc::new(Recorder::default()), Duration::from_secs(30));
        assert_eq!(inbox.lease().expect("it is leased").1, Duration::from_secs(30));
    }
}
