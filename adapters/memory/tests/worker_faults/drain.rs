//! How a worker ends.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::{
    Capabilities, Consumer, Delivery, Inbox, Message, Outcome, Outgoing, Queue, Result,
    Subscription, Worker,
};
use async_trait::async_trait;
use tokio::time::Instant;
use tower::service_fn;

use crate::double::{Answer, Double, Recorder, envelope, memory, pass, stop_with, work};

/// A broker hands out what was given back in the order in which it was given back.
#[tokio::test(start_paused = true)]
async fn an_ordered_drain_gives_back_each_key_in_order() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    for tag in 0..12 {
        let key = ["runs", "waits", "hangs"][usize::try_from(tag % 3).unwrap()];
        sender.deliver(recorder.deliver(tag, envelope().with_key(key))).await.unwrap();
    }
    let handler = service_fn(|message: Message| async move {
        match message.envelope().key.as_deref() {
            Some("runs") => tokio::time::sleep(Duration::from_secs(5)).await,
            Some("hangs") => pending().await,
            _ => return Answer::Ok(Outcome::Retry { after: Duration::from_mins(1) }),
        }
        Ok(Outcome::Ack)
    });
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let worker =
        Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker.drain_timeout(Duration::from_secs(20))).await;
    pass(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    sender.closed().await;
    drop(sender);
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.retried, report.released), (1, 1, 10));
    let tags = recorder.tags();
    for key in 0..3 {
        let of_key: Vec<_> = tags.iter().copied().filter(|tag| tag % 3 == key).collect();
        assert_eq!(of_key, [key, key + 3, key + 6, key + 9]);
    }
    let settled = recorder.settled.lock().unwrap();
    let outcome = |tag| settled.iter().find(|(of, ..)| *of == tag).map(|(_, outcome, _)| outcome);
    assert_eq!(outcome(0), Some(&Outcome::Ack));
    assert!(matches!(outcome(1), Some(Outcome::Retry { .. })));
}

/// A wait is not cut short where the broker would forget the rest of it, as long as the drain lasts.
#[tokio::test(start_paused = true)]
async fn an_ordered_drain_waits_for_what_the_broker_would_forget() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    for (tag, key) in [(0, "retry"), (1, "release"), (2, "longer"), (3, "late"), (4, "retry")] {
        sender.deliver(recorder.deliver(tag, envelope().with_key(key))).await.unwrap();
    }
    let handler = service_fn(|message: Message| async move {
        let after = Duration::from_secs(10);
        match message.envelope().key.as_deref() {
            Some("retry") => return Answer::Ok(Outcome::Retry { after }),
            Some("release") => return Ok(Outcome::Release { after }),
            Some("longer") => return Ok(Outcome::Retry { after: 6 * after }),
            _ => tokio::time::sleep(Duration::from_secs(5)).await,
        }
        Ok(Outcome::Retry { after })
    });
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let mut capabilities = Capabilities::new("double", 1024);
    capabilities.ordered_delays = false;
    let broker = Double::with(capabilities, vec![Box::new(inbox)]);
    let worker = Worker::new(broker).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker.drain_timeout(Duration::from_secs(20))).await;
    pass(Duration::from_secs(1)).await;
    let begun = Instant::now() - Duration::from_secs(1);
    stop.send(()).unwrap();
    sender.closed().await;
    drop(sender);
    let report = report.await.unwrap();
    assert_eq!((report.retried, report.released), (3, 2));
    let settled = recorder.settled.lock().unwrap();
    let times: Vec<_> = settled
        .iter()
        .map(|(tag, outcome, at)| {
            assert_eq!(outcome, &Outcome::Release { after: Duration::ZERO }, "it keeps its place");
            (*tag, (*at - begun).as_secs())
        })
        .collect();
    assert_eq!(times, [(0, 10), (1, 10), (3, 15), (2, 15), (4, 15)]);
}

/// No wait alone is too long for the broker, but together they would be.
#[tokio::test(start_paused = true)]
async fn ordered_waits_together_end_before_the_broker_takes_the_delivery_back() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    sender.deliver(recorder.deliver(0, envelope().with_key("a"))).await.unwrap();
    let after = Duration::from_mins(10);
    let handler = service_fn(move |_: Message| async move { Answer::Ok(Outcome::Retry { after }) });
    let mut capabilities = Capabilities::new("double", 1024);
    capabilities.longest_hold = Some(Duration::from_mins(30));
    let broker = Double::with(capabilities, vec![Box::new(inbox)]);
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let (stop, report) = stop_with(Worker::new(broker).subscribe(subscription, handler)).await;
    let begun = Instant::now();
    pass(Duration::from_mins(29)).await;
    {
        let settled = recorder.settled.lock().unwrap();
        let [(0, outcome, at)] = &settled[..] else { panic!("{settled:?}") };
        assert_eq!(outcome, &Outcome::Retry { after }, "the third wait is the broker's");
        assert_eq!((*at - begun).as_secs() / 60, 20);
    }
    stop.send(()).unwrap();
    drop(sender);
    assert_eq!(report.await.unwrap().retried, 3);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_waits_in_the_process_is_counted_once() {
    let broker = memory().await;
    let queue = Queue::new("keyed").ordered();
    let outgoing = Outgoing::new(queue.clone(), envelope().with_key("a"));
    broker.producer().send(outgoing).await.unwrap();
    let handler = service_fn(|_: Message| async {
        Answer::Ok(Outcome::Release { after: Duration::from_mins(1) })
    });
    let worker = Worker::new(broker).subscribe(Subscription::queue(queue), handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().released, 1);
}

/// While its last handlers finish, others of the group are to get the messages.
#[tokio::test(start_paused = true)]
async fn a_drain_stops_receiving_before_it_waits_for_handlers() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    sender.deliver(recorder.deliver(1, envelope())).await.unwrap();
    let handler = service_fn(|_: Message| async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Answer::Ok(Outcome::Ack)
    });
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(work(), handler);
    let (stop, report) = stop_with(worker.loops(1).concurrency(1)).await;
    pass(Duration::from_secs(1)).await;
    sender.deliver(recorder.deliver(2, envelope())).await.unwrap();
    stop.send(()).unwrap();
    pass(Duration::from_secs(1)).await;
    assert_eq!(recorder.tags(), [2], "the one that nobody handles is given back at once");
    assert!(sender.deliver(recorder.deliver(3, envelope())).await.is_err());
    drop(sender);
    let report = report.await.unwrap();
    assert_eq!(report.handled, 1);
    assert_eq!(recorder.tags(), [2, 3, 1]);
    assert_eq!(Arc::strong_count(&recorder), 1, "nothing is left");
}

/// Takes a while to close, and its first poll panics.
#[derive(Debug)]
struct SlowToClose {
    panicked: bool,
    closed: Arc<AtomicBool>,
}

#[async_trait]
impl Consumer for SlowToClose {
    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        _: usize,
        _: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        assert!(std::mem::replace(&mut self.panicked, true), "the first poll");
        Poll::Pending
    }

    async fn close(self: Box<Self>) -> Result<()> {
        pass(Duration::from_secs(1)).await;
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shared_consumer_is_awaited_though_a_loop_panicked() {
    let closed = Arc::new(AtomicBool::new(false));
    let consumer = SlowToClose { panicked: false, closed: Arc::clone(&closed) };
    let mut capabilities = Capabilities::new("double", 1024);
    capabilities.one_consumer = true;
    let broker = Double::with(capabilities, vec![Box::new(consumer)]);
    let handler = service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) });
    let worker = Worker::new(broker).subscribe(work(), handler).loops(2);
    let ended = worker.start().await.unwrap().run_until(std::future::pending::<()>()).await;
    assert!(ended.unwrap_err().to_string().contains("before its time"));
    assert!(closed.load(Ordering::Relaxed));
}
