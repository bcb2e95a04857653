//! The layers around a handler, on this broker: retry, dead-letter, idempotency.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::{
    Backoff, BoxError, DeadLetterFilter, DeadLetterLayer, Destination, Envelope, Error, ErrorKind,
    IdempotencyLayer, MemoryIdempotencyStore, Message, Outcome, Queue, Reason, Redrive, RetryLayer,
    Subscription, TimeoutLayer, TypedMessage, Worker, batch_handler_fn,
};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, PATIENCE, QUIET, message, messages};
use crate::conformance::worked::{Sightings, Working, acknowledge};

cases! {
    poison_gets_exactly_its_attempts_and_harms_no_neighbour: Need::TOPICS;
    a_redriven_message_passes_all_layers_again;
    a_handler_that_hangs_is_timed_out_and_retried;
    a_batch_is_settled_message_by_message;
    the_same_id_twice_is_handled_once: Need::TOPICS;
    a_duplicate_at_the_same_moment_waits_for_the_first;
    a_crash_in_the_middle_frees_the_claim;
    one_id_with_two_contents_is_given_up_not_skipped;
}

async fn poison_gets_exactly_its_attempts_and_harms_no_neighbour(lab: Lab) -> Checked {
    const ATTEMPTS: u32 = 4;
    let topic = lab::topic();
    let subscription = Subscription::topic(topic.clone()).group("one");
    let other = Subscription::topic(topic.clone()).group("other");
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.envelope().id == "m3" { Err("poison".into()) } else { Ok(Outcome::Ack) }
    });
    let service = ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(
            RetryLayer::new(Backoff::exponential(Duration::from_millis(100)))
                .max_attempts(ATTEMPTS),
        )
        .service(service);
    let (mut seen_by_other, other_service) = Sightings::of(acknowledge);
    let worker = Worker::new(lab.broker().clone())
        .subscribe(subscription.clone(), service)
        .subscribe(other.clone(), other_service);
    let working = Working::start(worker).await?;
    lab.publish(topic, messages(10)).await?;
    let mut attempts: HashMap<String, Vec<u32>> = HashMap::new();
    for sight in seen.take(9 + ATTEMPTS as usize).await? {
        attempts.entry(sight.id).or_default().push(sight.attempt);
    }
    let poison = attempts.remove("m3").ok_or("m3 was not seen")?;
    assert_eq!(poison, (1..=ATTEMPTS).collect::<Vec<_>>());
    assert!(attempts.values().all(|attempts| *attempts == [1]), "{attempts:?}");
    assert_eq!(attempts.len(), 9);
    seen_by_other.take(10).await?;
    seen.quiet(QUIET).await?;
    seen_by_other.quiet(Duration::ZERO).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (19, 3, 1), "{report}");
    let all = DeadLetterFilter::all();
    let found = lab.broker().dead_letters(&subscription, &all, 10).await?.entries;
    let [entry] = &*found else { return Err(format!("one entry expected: {found:?}").into()) };
    let failure = entry.failure().ok_or("no failure")?;
    assert_eq!((&*entry.envelope.id, &*failure.reason), ("m3", Reason::EXHAUSTED));
    assert!(failure.error.contains("poison"), "{failure:?}");
    assert!(lab.broker().dead_letters(&other, &all, 10).await?.entries.is_empty());
    Ok(())
}

async fn a_redriven_message_passes_all_layers_again(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let calls = Arc::new(AtomicU32::new(0));
    let count = calls.clone();
    let (mut seen, service) = Sightings::of(move |_| {
        let calls = count.fetch_add(1, Ordering::Relaxed) + 1;
        // It works from the second attempt after the redrive on.
        async move { if calls < 5 { Err("not yet".into()) } else { Ok(Outcome::Ack) } }
    });
    let idempotency = IdempotencyLayer::new(MemoryIdempotencyStore::new());
    let service = ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(&idempotency)
        .layer(RetryLayer::new(Backoff::fixed(Duration::from_millis(50))).max_attempts(3))
        .service(service);
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue, messages(1)).await?;
    let attempts: Vec<_> = seen.take(3).await?.iter().map(|sight| sight.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    lab.step("the dead letter");
    lab.depth(&subscription, "one dead letter", |depth| {
        depth.dead_lettered.is_none_or(|dead| dead == 1)
    })
    .await?;
    lab.step("redrive");
    assert_eq!(lab.broker().redrive(&subscription, &Redrive::all()).await?, 1);
    let attempts: Vec<_> = seen.take(2).await?.iter().map(|sight| sight.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    seen.quiet(QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.dead_lettered), (1, 1), "{report}");
    assert_eq!(idempotency.duplicates(), 0);
    Ok(())
}

async fn a_handler_that_hangs_is_timed_out_and_retried(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (mut seen, service) = Sightings::of(|message: Message| async move {
        if message.attempt() == 1 {
            pending::<()>().await;
        }
        Ok(Outcome::Ack)
    });
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Backoff::immediate()))
        .layer(TimeoutLayer::new(Duration::from_millis(300)))
        .service(service);
    let working = Working::on(&lab, &Subscription::queue(queue.clone()), service).await?;
    lab.publish(queue, messages(2)).await?;
    seen.take(4).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried), (2, 2), "{report}");
    Ok(())
}

/// The number of a message `m7`.
struct Number(u32);

impl TypedMessage for Number {
    const TYPE: &'static str = "conformance.message";
    const VERSION: u32 = 1;

    fn destination() -> Destination {
        Queue::new(Self::TYPE).into()
    }

    fn to_envelope(&self) -> Result<Envelope, Error> {
        Ok(message(&format!("m{}", self.0)))
    }

    fn from_envelope(envelope: &Envelope) -> Result<Self, Error> {
        let number = envelope.id.strip_prefix('m').and_then(|number| number.parse().ok());
        number.map(Self).ok_or_else(|| Error::new(ErrorKind::Undecodable, "no number"))
    }
}

async fn a_batch_is_settled_message_by_message(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (sender, mut batches) = mpsc::unbounded_channel();
    let service =
        batch_handler_fn(8, Duration::from_millis(100), move |batch: Vec<(Number, Message)>| {
            let seen = batch.iter().map(|(Number(number), message)| (*number, message.attempt()));
            let seen: Vec<_> = seen.collect();
            // A case that has seen enough reads no more.
            let _ = sender.send(seen.clone());
            async move {
                sleep(Duration::from_millis(50)).await;
                let odd_first = |(number, attempt): (u32, u32)| match (number % 2, attempt) {
                    (1, 1) => Err(BoxError::from("not yet")),
                    _ => Ok(()),
                };
                seen.into_iter().map(odd_first).collect::<Vec<_>>()
            }
        });
    let retry = RetryLayer::new(Backoff::fixed(Duration::from_millis(100)));
    let service = ServiceBuilder::new().layer(retry).service(service);
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue, messages(20)).await?;
    let (mut seen, mut largest) = (Vec::new(), 0);
    while seen.len() < 30 {
        let batch = timeout(PATIENCE, batches.recv()).await?.ok_or("the handler is gone")?;
        largest = largest.max(batch.len());
        seen.extend(batch);
    }
    assert!((2..=8).contains(&largest), "the largest batch had {largest}");
    seen.sort_unstable();
    let each =
        (0..20).flat_map(|number| (1..=1 + number % 2).map(move |attempt| (number, attempt)));
    assert_eq!(seen, each.collect::<Vec<_>>());
    let report = working.drain().await?;
    assert_eq!((report.handled, report.retried), (20, 10), "{report}");
    Ok(())
}

async fn the_same_id_twice_is_handled_once(lab: Lab) -> Checked {
    let topic = lab::topic();
    let store = Arc::new(MemoryIdempotencyStore::new());
    let idempotency = IdempotencyLayer::new(store);
    let (mut one, one_service) = Sightings::of(acknowledge);
    let (mut two, two_service) = Sightings::of(acknowledge);
    let worker = Worker::new(lab.broker().clone())
        .subscribe(
            Subscription::topic(topic.clone()).group("one"),
            ServiceBuilder::new().layer(&idempotency).service(one_service),
        )
        .subscribe(
            Subscription::topic(topic.clone()).group("two"),
            ServiceBuilder::new().layer(&idempotency).service(two_service),
        );
    let working = Working::start(worker).await?;
    // One after the other: two of one id at the same moment are another case.
    lab.publish(topic.clone(), messages(5)).await?;
    one.take(5).await?;
    two.take(5).await?;
    lab.step("each group handles each id once");
    lab.publish(topic, messages(5)).await?;
    one.quiet(QUIET).await?;
    two.quiet(Duration::ZERO).await?;
    assert_eq!(working.drain().await?.handled, 20);
    assert_eq!(idempotency.duplicates(), 10);
    Ok(())
}

async fn a_duplicate_at_the_same_moment_waits_for_the_first(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let idempotency =
        IdempotencyLayer::new(MemoryIdempotencyStore::new()).lease(Duration::from_secs(1));
    let (mut seen, service) = Sightings::of(|_| async {
        // Longer than the lease of the claim, which must be renewed meanwhile.
        sleep(Duration::from_millis(1500)).await;
        Ok(Outcome::Ack)
    });
    let service = ServiceBuilder::new().layer(&idempotency).service(service);
    let first = Working::on(&lab, &subscription, service.clone()).await?;
    let other = lab.reconnected().await?;
    let second = Working::on(&other, &subscription, service).await?;
    let copies = (0..6).map(|_| message("m0"));
    lab.publish(queue, copies).await?;
    lab.step("one of six runs");
    seen.next().await?;
    seen.quiet(Duration::from_secs(3)).await?;
    lab.step("the others are acknowledged unseen");
    lab.depth(&subscription, "empty", |depth| {
        let none = |value: Option<u64>| value.is_none_or(|value| value == 0);
        none(depth.ready) && none(depth.in_flight) && none(depth.delayed)
    })
    .await?;
    let (one, two) = (first.drain().await?, second.drain().await?);
    assert_eq!(one.handled + two.handled, 6, "{one}; {two}");
    assert_eq!(idempotency.duplicates(), 5);
    Ok(())
}

/// Ends as in a killed process: nothing is dropped, so that nothing can tidy up.
struct Killed<F>(Option<Pin<Box<F>>>);

impl<F: Future> Future for Killed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().map_or(Poll::Pending, |future| future.as_mut().poll(cx))
    }
}

impl<F> Drop for Killed<F> {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

async fn a_crash_in_the_middle_frees_the_claim(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
    let store = Arc::new(MemoryIdempotencyStore::new());
    let lease = Duration::from_secs(2);
    let (mut seen, service) = Sightings::of(|_| pending());
    let layer = IdempotencyLayer::new(store.clone()).lease(lease);
    let service = ServiceBuilder::new().layer(layer).service(service);
    let service =
        service_fn(move |message| Killed(Some(Box::pin(service.clone().oneshot(message)))));
    let other = lab.reconnected().await?;
    let working = Working::on(&other, &subscription, service).await?;
    lab.publish(queue, messages(1)).await?;
    seen.next().await?;
    working.crash(&other).await?;
    lab.step("handled again by another");
    let (mut seen, service) = Sightings::of(acknowledge);
    let idempotency = IdempotencyLayer::new(store).lease(lease);
    let service = ServiceBuilder::new().layer(&idempotency).service(service);
    let working = Working::on(&lab, &subscription, service).await?;
    seen.next().await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, idempotency.duplicates()), (1, 0), "{report}");
    Ok(())
}

async fn one_id_with_two_contents_is_given_up_not_skipped(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    let (mut seen, service) = Sightings::of(acknowledge);
    let idempotency = IdempotencyLayer::new(MemoryIdempotencyStore::new());
    let service = ServiceBuilder::new().layer(&idempotency).service(service);
    let working = Working::on(&lab, &subscription, service).await?;
    lab.publish(queue.clone(), [message("m0")]).await?;
    seen.next().await?;
    lab.publish(queue, [Envelope::new("conformance.message", "something else").with_id("m0")])
        .await?;
    seen.quiet(QUIET).await?;
    let report = working.drain().await?;
    assert_eq!((report.handled, report.dead_lettered), (1, 1), "{report}");
    let all = DeadLetterFilter::all();
    let found = lab.broker().dead_letters(&subscription, &all, 10).await?.entries;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].failure().ok_or("no failure")?.reason, Reason::MISMATCH);
    assert_eq!(&found[0].envelope.payload[..], b"something else");
    Ok(())
}
