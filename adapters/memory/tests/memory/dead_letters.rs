use std::sync::Arc;

use anybroker_core::{
    Broker, DeadLetterFilter, Envelope, Outcome, Peek, Queue, Redrive, Subscription, Topic,
};
use anybroker_memory::MemoryBroker;
use tokio::time::Instant;

use crate::receiver::*;

fn queue() -> Subscription {
    Subscription::queue("q")
}

/// Gives up whatever the receiver gets, with the code before the `-` of the id.
async fn give_up(receiver: &mut Receiver) {
    for delivery in receiver.ready().await {
        let code = delivery.envelope().id.split('-').next().unwrap().to_owned();
        delivery.settle(Outcome::dead_letter(code, "no use")).await.unwrap();
    }
}

async fn given_up(ids: &[&str]) -> (Arc<MemoryBroker>, Receiver) {
    let broker = broker();
    publish(&broker, Queue::new("q"), ids).await;
    let mut receiver = Receiver::open(&broker, &queue()).await;
    give_up(&mut receiver).await;
    (broker, receiver)
}

async fn peek(
    broker: &MemoryBroker,
    filter: &DeadLetterFilter,
    limit: usize,
) -> (Vec<String>, bool) {
    let Peek { entries, complete } = broker.dead_letters(&queue(), filter, limit).await.unwrap();
    (entries.into_iter().map(|letter| letter.envelope.id.clone()).collect(), complete)
}

#[tokio::test(start_paused = true)]
async fn dead_letter_is_whole_and_says_why() {
    let broker = broker();
    let group = Subscription::topic("t").group("email");
    let mut receiver = Receiver::open(&broker, &group).await;
    let sent: Envelope = message("a").with_key("k").with_header("tenant", "acme").unwrap();
    send(&broker, Topic::new("t"), sent.clone()).await.unwrap();
    receiver.one().await.settle(retry(SECOND)).await.unwrap();
    let delivery = receiver.one().await;
    let first_failure = delivery.hop().first_failure;
    delivery.settle(Outcome::dead_letter("broken", "no use")).await.unwrap();
    receiver.expect_nothing_for(SECOND).await;

    let peek = broker.dead_letters(&group, &DeadLetterFilter::all(), 10).await.unwrap();
    let letter = &peek.entries[0];
    assert_eq!(*letter.envelope, sent);
    assert_eq!((letter.hop.attempts, letter.hop.first_failure), (2, first_failure));
    let failure = letter.failure().unwrap();
    assert_eq!((&*failure.reason, &*failure.error), ("broken", "no use"));
    assert_eq!((&*failure.origin, &*failure.group), ("t", "email"));
}

#[tokio::test(start_paused = true)]
async fn looking_shows_the_oldest_that_are_meant_and_changes_nothing() {
    let (broker, _receiver) = given_up(&["x-1", "y-1", "x-2"]).await;
    let all = DeadLetterFilter::all();
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(peek(&broker, &all, 2).await, (names(&["x-1", "y-1"]), false));
    assert_eq!(peek(&broker, &all, 3).await, (names(&["x-1", "y-1", "x-2"]), true));
    assert_eq!(peek(&broker, &all.clone().reason("x"), 9).await, (names(&["x-1", "x-2"]), true));
    assert_eq!(peek(&broker, &all.clone().ids(["y-1"]), 9).await, (names(&["y-1"]), true));
    assert_eq!(peek(&broker, &all.older_than(SECOND * 60), 9).await, (names(&[]), true));
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 0, 3]);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_belong_to_their_group() {
    let broker = broker();
    let group = |name: &'static str| Subscription::topic("t").group(name);
    let mut email = Receiver::open(&broker, &group("email")).await;
    let mut audit = Receiver::open(&broker, &group("audit")).await;
    publish(&broker, Topic::new("t"), &["x-1"]).await;
    audit.one().await.settle(Outcome::Ack).await.unwrap();
    give_up(&mut email).await;
    assert_eq!(depth(&broker, &group("audit")).await, [0, 0, 0, 0]);
    assert_eq!(broker.redrive(&group("audit"), &Redrive::all()).await.unwrap(), 0);
    assert_eq!(broker.redrive(&group("email"), &Redrive::all()).await.unwrap(), 1);
    audit.expect_nothing_for(SECOND).await;
    email.expect("x-1").await;
}

#[tokio::test(start_paused = true)]
async fn redrive_sends_back_once_what_is_meant_and_attempts_start_anew() {
    let (broker, mut receiver) = given_up(&["x-1", "y-1", "x-2", "x-3"]).await;
    let xs = Redrive::all().filter(DeadLetterFilter::all().reason("x"));
    assert_eq!(broker.redrive(&queue(), &xs.clone().limit(2)).await.unwrap(), 2);
    assert_eq!(broker.redrive(&queue(), &xs).await.unwrap(), 1);
    assert_eq!(broker.redrive(&queue(), &xs).await.unwrap(), 0, "a second time sends nothing");
    let batch = receiver.ready().await;
    assert_eq!(ids(&batch), ["x-1", "x-2", "x-3"]);
    for delivery in batch {
        delivery.settle(release(NOW)).await.unwrap();
    }
    let batch = receiver.ready().await;
    assert_eq!(ids(&batch), ["x-1", "x-2", "x-3"]);
    for delivery in batch {
        assert_eq!((delivery.attempt(), delivery.hop().failure.as_deref()), (1, None));
        delivery.settle(Outcome::Ack).await.unwrap();
    }
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 0, 1]);
    assert_eq!(broker.redrive(&queue(), &Redrive::all()).await.unwrap(), 1);
    receiver.expect("y-1").await;
}

#[tokio::test(start_paused = true)]
async fn redrive_wakes_a_waiting_consumer() {
    let (broker, mut receiver) = given_up(&["x-1"]).await;
    let waiting = tokio::spawn(async move { receiver.one().await });
    tokio::task::yield_now().await;
    broker.redrive(&queue(), &Redrive::all()).await.unwrap();
    assert_eq!(waiting.await.unwrap().envelope().id, "x-1");
}

#[tokio::test(start_paused = true)]
async fn slow_redrive_keeps_its_rate_and_sends_nothing_twice() {
    let (broker, mut receiver) = given_up(&["x-1", "x-2", "x-3"]).await;
    let start = Instant::now();
    let slow = Redrive::all().per_second(2);
    let redriving = {
        let broker = broker.clone();
        tokio::spawn(async move { broker.redrive(&queue(), &slow).await.unwrap() })
    };
    for after in [0, 500, 1000] {
        let delivery = receiver.one().await;
        assert_eq!(start.elapsed(), MILLISECOND * after);
        delivery.settle(Outcome::dead_letter("again", "no use")).await.unwrap();
    }
    assert_eq!(redriving.await.unwrap(), 3);
    receiver.expect_nothing_for(SECOND * 10).await;
    assert_eq!(depth(&broker, &queue()).await, [0, 0, 0, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redrives_at_the_same_time_send_nothing_twice() {
    let broker = broker();
    let names: Vec<_> = (0..2000).map(|number| format!("x-{number}")).collect();
    let mut receiver = Receiver::with_prefetch(&broker, &queue(), 5000).await;
    for name in &names {
        send(&broker, Queue::new("q"), message(name)).await.unwrap();
    }
    for delivery in receiver.receive(5000).await.unwrap() {
        delivery.settle(Outcome::dead_letter("x", "no use")).await.unwrap();
    }
    let redrives: Vec<_> = (0..8)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move {
                let mut sent = 0;
                for _ in 0..10 {
                    sent += broker.redrive(&queue(), &Redrive::all().limit(50)).await.unwrap();
                }
                sent
            })
        })
        .collect();
    let mut sent = 0;
    for redrive in redrives {
        sent += redrive.await.unwrap();
    }
    assert_eq!(sent, 2000);
    let batch = receiver.receive(5000).await.unwrap();
    assert_eq!(ids(&batch), names);
}

#[tokio::test(start_paused = true)]
async fn purge_removes_what_is_there_and_leaves_later_ones() {
    let (broker, mut receiver) = given_up(&["x-1", "x-2"]).await;
    assert_eq!(broker.purge_dead_letters(&queue()).await.unwrap(), 2);
    publish(&broker, Queue::new("q"), &["x-3"]).await;
    give_up(&mut receiver).await;
    let all = DeadLetterFilter::all();
    assert_eq!(peek(&broker, &all, 9).await, (vec!["x-3".to_owned()], true));
    assert_eq!(broker.redrive(&queue(), &Redrive::all()).await.unwrap(), 1);
    receiver.expect("x-3").await;
}
