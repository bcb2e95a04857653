//! A failure costs its own message an attempt, and the worker nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::{
    BoxError, Error, ErrorKind, Inbox, Message, Outcome, Outgoing, Queue, Subscription, Worker,
};
use tokio::time::Instant;
use tower::{Service, service_fn};

use crate::double::{Answer, Double, Recorder, envelope, memory, pass, publish, stop_with, work};

/// Panics or errs the first few times that it is asked whether it is ready.
#[derive(Clone)]
struct Unready {
    asked: Arc<AtomicU32>,
    panics: bool,
}

impl Service<Message> for Unready {
    type Response = Outcome;
    type Error = BoxError;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.asked.fetch_add(1, Ordering::Relaxed) < 2 {
            assert!(!self.panics, "not yet");
            return Poll::Ready(Err("not yet".into()));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Message) -> Self::Future {
        std::future::ready(Ok(Outcome::Ack))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_get_ready_is_asked_again_later() {
    for panics in [false, true] {
        let broker = memory().await;
        publish(&broker, &["1", "2"]).await;
        let asked = Arc::new(AtomicU32::new(0));
        let service = Unready { asked: Arc::clone(&asked), panics };
        let worker = Worker::new(broker.clone()).subscribe(work(), service).loops(1);
        let (stop, report) = stop_with(worker).await;
        pass(Duration::from_secs(5)).await;
        stop.send(()).unwrap();
        let report = report.await.unwrap();
        assert_eq!((report.handled, report.retried), (2, 0), "panics: {panics}");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "panics: {panics}");
    }
}

#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words for it")
    }
}

impl std::error::Error for Unspeakable {}

#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_shown_does_not_end_the_worker() {
    let broker = memory().await;
    publish(&broker, &["1"]).await;
    let handler = service_fn(|_: Message| async { Err::<Outcome, _>(Unspeakable) });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    pass(Duration::from_mins(5)).await;
    stop.send(()).unwrap();
    let report = report.await.unwrap();
    assert_eq!((report.retried, report.dead_lettered), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn an_ordered_wait_beyond_the_clock_does_not_end_the_worker() {
    let broker = memory().await;
    let queue = Queue::new("keyed").ordered();
    for (id, key) in [("1", "a"), ("2", "b"), ("3", "c")] {
        let outgoing = Outgoing::new(queue.clone(), envelope().with_id(id).with_key(key));
        broker.producer().send(outgoing).await.unwrap();
    }
    let handler = service_fn(|message: Message| async move {
        Answer::Ok(match &*message.envelope().id {
            "1" => Outcome::Retry { after: Duration::MAX },
            "2" => Outcome::Release { after: Duration::MAX },
            _ => Outcome::Ack,
        })
    });
    let worker = Worker::new(broker.clone()).subscribe(Subscription::queue(queue), handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_secs(5)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().handled, 1);
}

fn refused() -> anybroker_core::Error {
    Error::new(ErrorKind::Unavailable, "the connection broke")
}

/// One broken connection fails all that is in flight at once.
#[tokio::test(start_paused = true)]
async fn many_settlements_that_fail_together_are_one_failure() {
    let recorder = Recorder::with(|tag, _| if tag < 64 { Err(refused()) } else { Ok(()) });
    let (sender, inbox) = Inbox::channel(256);
    for tag in 0..64 {
        sender.deliver(recorder.deliver(tag, envelope())).await.unwrap();
    }
    let handler = service_fn(|_: Message| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Answer::Ok(Outcome::Ack)
    });
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(work(), handler);
    let (stop, report) = stop_with(worker.loops(1)).await;
    pass(Duration::from_secs(1)).await;
    sender.deliver(recorder.deliver(64, envelope())).await.unwrap();
    let failed = Instant::now();
    pass(Duration::from_mins(1)).await;
    let (last, _, at) = recorder.settled.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last, 64);
    assert!(at - failed < Duration::from_secs(2), "it paused for {:?}", at - failed);
    drop(sender);
    stop.send(()).unwrap();
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.unsettled), (1, 64));
}

#[tokio::test(start_paused = true)]
async fn settlements_that_keep_failing_are_tried_less_and_less_often() {
    let recorder = Recorder::with(|_, _| Err(refused()));
    let (sender, inbox) = Inbox::channel(256);
    let handler = service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) });
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(work(), handler);
    let (stop, report) = stop_with(worker.loops(1).concurrency(1)).await;
    let source = Arc::clone(&recorder);
    let feed = tokio::spawn(async move {
        for tag in 0.. {
            // As a broker does with what was not settled.
            if sender.deliver(source.deliver(tag, envelope())).await.is_err() {
                return;
            }
        }
    });
    pass(Duration::from_mins(5)).await;
    let tries = recorder.tags().len();
    assert!((5..50).contains(&tries), "{tries} tries in five minutes");
    stop.send(()).unwrap();
    report.await.unwrap();
    feed.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_gives_back_all_it_sees_does_not_run_hot() {
    let broker = memory().await;
    publish(&broker, &["0"]).await;
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let handler = service_fn(move |_: Message| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Answer::Ok(Outcome::Release { after: Duration::ZERO }) }
    });
    let (stop, report) = stop_with(Worker::new(broker.clone()).subscribe(work(), handler)).await;
    pass(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    report.await.unwrap();
    let calls = calls.load(Ordering::Relaxed);
    assert!((10..=21).contains(&calls), "{calls} calls in a second");
    assert_eq!(broker.depth(&work()).await.unwrap().ready, Some(1));
}
