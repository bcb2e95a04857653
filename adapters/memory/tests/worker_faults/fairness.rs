//! Nothing waits for ever behind something else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{Message, Outcome, Worker};
use tokio::sync::{mpsc, oneshot};
use tower::service_fn;

use crate::double::{Answer, memory, pass, publish, stop_with, work};

/// The other loop, or another process, has room for it.
#[tokio::test(start_paused = true)]
async fn a_loop_that_is_busy_with_a_retry_takes_no_wake_up_from_another() {
    let broker = memory().await;
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        let id = message.envelope().id.clone();
        let log = Arc::clone(&log);
        async move {
            if message.attempt() == 1 && id == "slow" {
                return Answer::Ok(Outcome::Retry { after: Duration::from_secs(1) });
            }
            if id == "slow" {
                tokio::time::sleep(Duration::from_hours(1)).await;
            }
            log.lock().unwrap().push(id);
            Ok(Outcome::Ack)
        }
    });
    let worker = Worker::new(broker.clone()).subscribe(work(), handler).concurrency(2).loops(2);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_millis(10)).await;
    publish(&broker, &["slow"]).await;
    pass(Duration::from_secs(2)).await;
    for id in ["a", "b", "c"] {
        publish(&broker, &[id]).await;
        pass(Duration::from_secs(1)).await;
        assert_eq!(seen.lock().unwrap().last().map(|last| &**last), Some(id));
    }
    drop(stop);
    assert_eq!(report.await.unwrap().handled, 3);
}

#[tokio::test(start_paused = true)]
async fn a_draining_worker_takes_no_wake_up_from_another() {
    let broker = memory().await;
    let seen = Arc::new(AtomicU32::new(0));
    let worker = |first: bool| {
        let seen = Arc::clone(&seen);
        let handler = service_fn(move |message: Message| {
            let seen = Arc::clone(&seen);
            async move {
                if first && message.envelope().id == "long" {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                } else {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                Answer::Ok(Outcome::Ack)
            }
        });
        Worker::new(broker.clone()).subscribe(work(), handler).loops(1)
    };
    let (stop, report) = stop_with(worker(true)).await;
    publish(&broker, &["long"]).await;
    pass(Duration::from_secs(1)).await;
    let (stop_second, second) = stop_with(worker(false)).await;
    pass(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    pass(Duration::from_secs(1)).await;
    publish(&broker, &["next"]).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert_eq!(report.await.unwrap().handled, 1);
    stop_second.send(()).unwrap();
    assert_eq!(second.await.unwrap().handled, 1);
}

/// tokio lets a task take so many steps at a time; all handlers of a loop share them.
#[tokio::test]
async fn handlers_that_always_have_something_to_do_do_not_starve_the_others() {
    let broker = memory().await;
    let done = Arc::new(AtomicBool::new(false));
    let (finish, finished) = oneshot::channel::<()>();
    let parts = Arc::new(Mutex::new((Some(finish), Some(finished))));
    let is_done = Arc::clone(&done);
    let handler = service_fn(move |message: Message| {
        let (is_done, parts) = (Arc::clone(&is_done), Arc::clone(&parts));
        async move {
            if message.envelope().id == "patient" {
                let answer = parts.lock().unwrap().1.take().unwrap();
                answer.await.unwrap();
                is_done.store(true, Ordering::Relaxed);
                return Answer::Ok(Outcome::Ack);
            }
            let (sender, mut receiver) = mpsc::unbounded_channel();
            sender.send(()).unwrap();
            let mut steps = 0_u32;
            while !is_done.load(Ordering::Relaxed) {
                receiver.recv().await.unwrap();
                sender.send(()).unwrap();
                steps += 1;
                if steps == 10_000 {
                    parts.lock().unwrap().0.take().map(|finish| finish.send(()));
                }
                assert!(steps < 3_000_000, "the patient one was starved");
            }
            Ok(Outcome::Ack)
        }
    });
    publish(&broker, &["busy-1", "patient", "busy-2"]).await;
    let worker = Worker::new(broker.clone()).subscribe(work(), handler).loops(1);
    let (stop, report) = stop_with(worker).await;
    while !done.load(Ordering::Relaxed) {
        pass(Duration::from_millis(1)).await;
    }
    pass(Duration::from_millis(50)).await;
    stop.send(()).unwrap();
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.retried), (3, 0));
}
