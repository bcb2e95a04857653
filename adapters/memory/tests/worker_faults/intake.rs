//! Whatever a consumer hands out, or does not.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::{
    Consumer, Delivery, Error, ErrorKind, Expired, Hop, Inbox, Message, Outcome, Queue, Result,
    Subscription, Worker,
};
use async_trait::async_trait;
use tower::service_fn;

use crate::double::{Answer, Double, Recorder, envelope, pass, stop_with, work};

/// Calls a function for what it receives.
struct Calling<F>(F);

#[async_trait]
impl<F> Consumer for Calling<F>
where
    F: FnMut(&mut Context<'_>, usize, &mut Vec<Delivery>) -> Poll<Result<()>> + Send,
{
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        (self.0)(cx, max, out)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl<F> std::fmt::Debug for Calling<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Calling")
    }
}

fn acknowledges() -> impl anybroker_core::Handler {
    service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) })
}

/// Nothing ends such a loop but a turn for the other tasks.
#[tokio::test]
async fn a_consumer_that_is_always_ready_lets_other_tasks_run() {
    let recorder = Recorder::new();
    let expired = Arc::clone(&recorder);
    let consumers: Vec<Box<dyn Consumer>> = vec![
        Box::new(Calling(|_: &mut Context<'_>, _, _: &mut Vec<Delivery>| Poll::Ready(Ok(())))),
        Box::new(Calling(move |_: &mut Context<'_>, max, out: &mut Vec<Delivery>| {
            let past = anybroker_core::now() - Duration::from_secs(1);
            out.extend((0..max).map(|_| expired.deliver(1, envelope().with_expires(past))));
            Poll::Ready(Ok(()))
        })),
    ];
    for consumer in consumers {
        let subscription = work().expired(Expired::Discard);
        let worker =
            Worker::new(Double::broker(vec![consumer])).subscribe(subscription, acknowledges());
        let (stop, report) = stop_with(worker.loops(1)).await;
        pass(Duration::from_millis(20)).await;
        stop.send(()).unwrap();
        assert_eq!(report.await.unwrap().handled, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_was_asked_for_is_handled_all_the_same() {
    let recorder = Recorder::new();
    let source = Arc::clone(&recorder);
    let mut handed_out = false;
    let consumer = Calling(move |_: &mut Context<'_>, _, out: &mut Vec<Delivery>| {
        if std::mem::replace(&mut handed_out, true) {
            return Poll::Pending;
        }
        out.extend((0..1000).map(|tag| source.deliver(tag, envelope())));
        Poll::Ready(Ok(()))
    });
    let worker =
        Worker::new(Double::broker(vec![Box::new(consumer)])).subscribe(work(), acknowledges());
    let (stop, report) = stop_with(worker.loops(1).concurrency(3)).await;
    pass(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().handled, 1000);
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_is_not_polled() {
    let polls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&polls);
    let consumer = Calling(move |_: &mut Context<'_>, _, _: &mut Vec<Delivery>| {
        count.fetch_add(1, Ordering::Relaxed);
        Poll::Pending
    });
    let worker =
        Worker::new(Double::broker(vec![Box::new(consumer)])).subscribe(work(), acknowledges());
    let (stop, report) = stop_with(worker.loops(1)).await;
    pass(Duration::from_hours(1)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().handled, 0);
    assert!(polls.load(Ordering::Relaxed) < 4, "{polls:?} polls");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_fails_for_a_while_is_asked_seldom_and_not_given_up() {
    let polls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&polls);
    let recorder = Recorder::new();
    let source = Arc::clone(&recorder);
    let mut failures = 0;
    let consumer = Calling(move |_: &mut Context<'_>, max, out: &mut Vec<Delivery>| {
        count.fetch_add(1, Ordering::Relaxed);
        if failures < 10 && max > 0 {
            failures += 1;
            return Poll::Ready(Err(Error::new(ErrorKind::Unavailable, "the broker is away")));
        }
        if max == 0 {
            return Poll::Ready(Ok(()));
        }
        if failures == 10 {
            failures += 1;
            out.push(source.deliver(1, envelope()));
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    });
    let worker =
        Worker::new(Double::broker(vec![Box::new(consumer)])).subscribe(work(), acknowledges());
    let (stop, report) = stop_with(worker.loops(1)).await;
    pass(Duration::from_mins(10)).await;
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().handled, 1);
    assert!(polls.load(Ordering::Relaxed) < 20, "{polls:?} polls");
}

/// What an ended consumer handed out comes again: to run the old ones too makes every message a
/// duplicate, and breaks the order of its key.
#[tokio::test(start_paused = true)]
async fn what_a_lost_consumer_handed_out_is_not_started() {
    let (first, second) = (Recorder::new(), Recorder::new());
    let keyed = || envelope().with_key("a");
    let (old, old_inbox) = Inbox::channel(16);
    let (new, new_inbox) = Inbox::channel(16);
    for tag in 1..=3 {
        old.deliver(first.deliver(tag, keyed())).await.unwrap();
        new.deliver(second.deliver(tag, keyed())).await.unwrap();
    }
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        let log = Arc::clone(&log);
        async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            log.lock().unwrap().push(message.envelope().id.clone());
            Answer::Ok(Outcome::Ack)
        }
    });
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let broker = Double::broker(vec![Box::new(old_inbox), Box::new(new_inbox)]);
    let worker = Worker::new(broker).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_secs(1)).await;
    first.lost.store(true, Ordering::Relaxed);
    drop(old);
    pass(Duration::from_mins(2)).await;
    drop(new);
    stop.send(()).unwrap();
    report.await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["1", "1", "2", "3"]);
    assert_eq!(*first.abandoned.lock().unwrap(), [1, 2, 3]);
}

/// The lease of what came last may be alive when those of the ones before it have run out, as in an
/// outage. It would pass them.
#[tokio::test(start_paused = true)]
async fn what_follows_a_lost_one_of_its_key_goes_back_with_it() {
    let (lost, held) = (Recorder::new(), Recorder::new());
    let keyed = || envelope().with_key("a");
    let (sender, inbox) = Inbox::channel(16);
    sender.deliver(lost.deliver(1, keyed())).await.unwrap();
    sender.deliver(lost.deliver(2, keyed())).await.unwrap();
    sender.deliver(held.deliver(3, keyed())).await.unwrap();
    sender.deliver(held.deliver(4, envelope().with_key("b"))).await.unwrap();
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        log.lock().unwrap().push(message.envelope().id.clone());
        let is_first = message.envelope().id == "1";
        let after = Duration::from_secs(4);
        async move { Answer::Ok(if is_first { Outcome::Retry { after } } else { Outcome::Ack }) }
    });
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let worker =
        Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_secs(1)).await;
    lost.lost.store(true, Ordering::Relaxed);
    pass(Duration::from_secs(10)).await;
    drop(sender);
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().released, 1);
    assert_eq!(*seen.lock().unwrap(), ["1", "4"]);
    assert_eq!(*lost.abandoned.lock().unwrap(), [1, 2]);
    assert_eq!(held.tags(), [4, 3], "the third went back");
}

/// A consumer that has reconnected hands out again what was lost, while a retry of the first waits
/// yet. Given back with that, what has come would be passed by what is still on its way.
#[tokio::test(start_paused = true)]
async fn what_came_again_is_not_given_back_with_what_was_lost() {
    let (lost, again) = (Recorder::new(), Recorder::of_stream(1));
    let keyed = || envelope().with_key("a");
    let (sender, inbox) = Inbox::channel(16);
    sender.deliver(lost.deliver(1, keyed())).await.unwrap();
    sender.deliver(lost.deliver(2, keyed())).await.unwrap();
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let handler = service_fn(move |message: Message| {
        let mut log = log.lock().unwrap();
        log.push(message.envelope().id.clone());
        let is_first = log.len() == 1;
        let after = Duration::from_secs(4);
        async move { Answer::Ok(if is_first { Outcome::Retry { after } } else { Outcome::Ack }) }
    });
    let subscription = Subscription::queue(Queue::new("keyed").ordered());
    let worker =
        Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(subscription, handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_secs(1)).await;
    lost.lost.store(true, Ordering::Relaxed);
    sender.deliver(again.deliver(1, keyed())).await.unwrap();
    sender.deliver(again.deliver(2, keyed())).await.unwrap();
    pass(Duration::from_secs(10)).await;
    sender.deliver(again.deliver(3, keyed())).await.unwrap();
    pass(Duration::from_secs(1)).await;
    drop(sender);
    stop.send(()).unwrap();
    report.await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["1", "1", "2", "3"]);
    assert_eq!(*lost.abandoned.lock().unwrap(), [1, 2]);
    assert_eq!(again.settled.lock().unwrap().iter().filter(|one| one.1 == Outcome::Ack).count(), 3);
}

/// A lease does not end with the consumer that got it: what runs would run twice, and a retry that
/// waits would forget its attempts.
#[tokio::test(start_paused = true)]
async fn what_an_ended_consumer_still_holds_is_renewed_and_handled() {
    let (first, second) = (Recorder::new(), Recorder::new());
    let (old, old_inbox) = Inbox::channel(16);
    let (new, new_inbox) = Inbox::channel(16);
    old.deliver(first.deliver(1, envelope())).await.unwrap();
    old.deliver(first.deliver(2, envelope())).await.unwrap();
    new.deliver(second.deliver(1, envelope().with_key("new"))).await.unwrap();
    let lease = Duration::from_secs(30);
    let consumers: Vec<Box<dyn Consumer>> = vec![
        Box::new(old_inbox.leased(first.clone(), lease)),
        Box::new(new_inbox.leased(second.clone(), lease)),
    ];
    let handler = service_fn(|message: Message| async move {
        let envelope = message.envelope();
        match (&*envelope.id, message.attempt()) {
            ("2", 1) => return Answer::Ok(Outcome::Retry { after: Duration::from_secs(4) }),
            ("1", _) if envelope.key.is_none() => pass(Duration::from_mins(2)).await,
            _ => {}
        }
        Answer::Ok(Outcome::Ack)
    });
    let worker = Worker::new(Double::broker(consumers)).subscribe(work(), handler);
    let (stop, report) = stop_with(worker.loops(1)).await;
    pass(Duration::from_secs(1)).await;
    drop(old);
    pass(Duration::from_mins(3)).await;
    drop(new);
    stop.send(()).unwrap();
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.retried, report.stale), (3, 1, 0));
    assert_eq!(first.tags(), [2, 1]);
    // Each 10 s, until it was settled after two minutes.
    assert_eq!(*first.renewed.lock().unwrap(), [1; 11]);
    assert_eq!(*second.renewed.lock().unwrap(), [0_u64; 0], "it was settled at once");
}

/// In order nobody gets what follows a delivery as long as that is held, nor is there room for it;
/// and what is lost has come again.
#[tokio::test(start_paused = true)]
async fn what_waits_in_order_is_let_go_when_its_consumer_has_ended() {
    for lost in [false, true] {
        let (first, second) = (Recorder::new(), Recorder::new());
        let (old, old_inbox) = Inbox::channel(16);
        let (new, new_inbox) = Inbox::channel(16);
        let keyed = || envelope().with_key("a");
        old.deliver(first.deliver(1, keyed())).await.unwrap();
        old.deliver(first.deliver(2, keyed())).await.unwrap();
        new.deliver(second.deliver(3, keyed())).await.unwrap();
        let handler = service_fn(|message: Message| async move {
            Answer::Ok(match &*message.envelope().id {
                "3" => Outcome::Ack,
                _ => Outcome::Retry { after: Duration::from_hours(1) },
            })
        });
        let subscription = Subscription::queue(Queue::new("keyed").ordered());
        let broker = Double::broker(vec![Box::new(old_inbox), Box::new(new_inbox)]);
        let worker = Worker::new(broker).subscribe(subscription, handler);
        let (stop, report) = stop_with(worker).await;
        pass(Duration::from_secs(1)).await;
        first.lost.store(lost, Ordering::Relaxed);
        drop(old);
        pass(Duration::from_mins(1)).await;
        assert_eq!(second.tags(), [3], "lost: {lost}");
        let (mut gone, given_back) = (first.abandoned.lock().unwrap().clone(), first.tags());
        gone.extend(given_back);
        assert_eq!(gone, [1, 2], "lost: {lost}");
        drop(new);
        stop.send(()).unwrap();
        report.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_dropped_midway_gives_everything_back() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    for tag in 0..20 {
        sender.deliver(recorder.deliver(tag, envelope())).await.unwrap();
    }
    let handler = service_fn(|message: Message| async move {
        if message.envelope().id == "1" {
            return Answer::Ok(Outcome::Retry { after: Duration::from_secs(3) });
        }
        pending().await
    });
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(work(), handler);
    let running = worker.loops(1).concurrency(4).start().await.unwrap();
    pass(Duration::from_secs(1)).await;
    drop(running);
    pass(Duration::from_secs(1)).await;
    let mut abandoned = recorder.abandoned.lock().unwrap().clone();
    abandoned.sort_unstable();
    assert_eq!(abandoned, [0, 1, 2, 3, 4], "the running ones, and the one that waits");
    assert_eq!(recorder.tags(), (5..20).collect::<Vec<_>>(), "the worker had not taken them");
}

/// They come again, to whomever: to handle them too would be to handle them twice, and out of order.
#[tokio::test(start_paused = true)]
async fn what_waits_in_the_worker_is_not_handled_when_its_connection_is_gone() {
    let recorder = Recorder::new();
    let (sender, inbox) = Inbox::channel(64);
    for tag in 1..=3 {
        sender.deliver(recorder.deliver(tag, envelope().with_key("a"))).await.unwrap();
    }
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let handler = service_fn(move |_: Message| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            pass(Duration::from_secs(1)).await;
            Answer::Ok(Outcome::Ack)
        }
    });
    let queue = Subscription::queue(Queue::new("work").ordered());
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(queue, handler);
    let (stop, report) = stop_with(worker).await;
    pass(Duration::from_millis(500)).await;
    recorder.lost.store(true, Ordering::Relaxed);
    pass(Duration::from_secs(5)).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1, "the one that ran already");
    recorder.lost.store(false, Ordering::Relaxed);
    sender.deliver(recorder.deliver(4, envelope().with_key("a"))).await.unwrap();
    pass(Duration::from_secs(5)).await;
    assert_eq!(calls.load(Ordering::Relaxed), 2, "the key is free again");
    drop(sender);
    stop.send(()).unwrap();
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.stale), (1, 3));
    assert_eq!(*recorder.abandoned.lock().unwrap(), [1, 2, 3]);
}

/// What a consumer hands out that does not keep the time itself, more than the loop can hold.
#[tokio::test(start_paused = true)]
async fn what_is_due_far_ahead_leaves_room_for_the_others_in_order() {
    const EARLY: u64 = 200;
    let recorder = Recorder::new();
    let source = Arc::clone(&recorder);
    let mut next = 0;
    let consumer = Calling(move |_: &mut Context<'_>, max, out: &mut Vec<Delivery>| {
        let first = next;
        while next < EARLY + 20 && out.len() < max {
            let early = next < EARLY;
            let key = if early && next % 2 == 0 { "same".to_owned() } else { next.to_string() };
            let hop = early.then(|| Box::new(Hop::delayed(Duration::from_hours(1))));
            let envelope = Arc::new(envelope().with_key(key));
            out.push(Delivery::new(envelope, hop, 0, next, Arc::clone(&source) as _));
            next += 1;
        }
        if next > first { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    let handler = service_fn(move |_: Message| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Answer::Ok(Outcome::Ack) }
    });
    let subscription = Subscription::queue(Queue::new("work").ordered());
    let worker = Worker::new(Double::broker(vec![Box::new(consumer)])).concurrency(16);
    let (stop, report) = stop_with(worker.subscribe(subscription, handler).loops(1)).await;
    pass(Duration::from_secs(10)).await;
    assert_eq!(count.load(Ordering::Relaxed), 20);
    let set_aside = recorder.settled.lock().unwrap().iter().filter(|(_, outcome, _)| {
        matches!(outcome, Outcome::Release { after } if *after > Duration::from_mins(50))
    }).count();
    assert!(set_aside >= 200 - 80, "{set_aside} were given to the broker");
    assert!(set_aside <= 200 - 64, "{set_aside}: as many as there is room for wait here");
    stop.send(()).unwrap();
    assert_eq!(report.await.unwrap().handled, 20);
}
