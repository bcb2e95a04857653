//! One bad entry of a pipeline or a script: the error is its own, and the others go on.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, ErrorKind, Outcome, Outgoing, Queue, Redrive, Subscription};
use anybroker_redis::redis::cmd;
use support::{ack, connect, message, receive, run, send, servers, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_is_refused_takes_none_of_its_pipeline_along() {
    for url in servers() {
        let broker = connect(&url).await;
        let (good, bad) = (unique("good"), unique("bad"));
        for name in [&good, &bad] {
            send(&broker, Queue::new(name.clone()), message("first")).await;
        }
        let _: u8 = run(&broker, cmd("DEL").arg(&bad)).await;
        let _: String = run(&broker, cmd("SET").arg(&bad).arg("no stream")).await;
        let producer = broker.producer();
        let sends: Vec<_> = (0..20)
            .map(|id| {
                let to = if id % 4 == 3 { &bad } else { &good };
                producer.send(Outgoing::new(Queue::new(to.clone()), message(id.to_string())))
            })
            .collect();
        for (id, sent) in sends.into_iter().enumerate() {
            match sent.await {
                Ok(()) => assert_ne!(id % 4, 3, "{url}"),
                Err(error) => assert_eq!((id % 4, error.kind()), (3, ErrorKind::Mismatch), "{url}"),
            }
        }
        assert_eq!(run::<usize>(&broker, cmd("XLEN").arg(&good)).await, 16, "{url}");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_refused_keeps_none_of_its_batch_from_being_settled() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("copies");
        let subscription = Subscription::queue(name.clone());
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        let dlq = format!("{{{name}}}--{name}--dlq");
        let _: String = run(&broker, cmd("SET").arg(&dlq).arg("no stream")).await;
        let mut held = Vec::new();
        for id in ["a", "b", "c"] {
            send(&broker, Queue::new(name.clone()), message(id)).await;
            held.push(receive(&mut consumer).await);
        }
        let later = || Outcome::Retry { after: Duration::from_millis(10) };
        let mut settled = Vec::new();
        for delivery in held {
            let outcome = match &*delivery.envelope().id {
                "b" => Outcome::dead_letter("test", "why"),
                _ => later(),
            };
            settled.push((delivery.envelope().id.clone(), delivery.settle(outcome)));
        }
        for (id, settled) in settled {
            match settled.await {
                Ok(()) => assert_ne!(id, "b", "{url}"),
                Err(error) => {
                    assert_eq!((&*id, error.kind()), ("b", ErrorKind::Mismatch), "{url}: {error}");
                }
            }
        }
        // All come again, each once: the retries, and what could not be dead-lettered.
        let mut ids = Vec::new();
        for _ in 0..3 {
            let delivery = receive(&mut consumer).await;
            ids.push(delivery.envelope().id.clone());
            ack(delivery).await;
        }
        ids.sort_unstable();
        assert_eq!(ids, ["a", "b", "c"], "{url}");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_refused_keeps_none_of_the_others_from_being_sent_back() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("redriven");
        let queue = Queue::new(name.clone()).partitions(2);
        let subscription = Subscription::queue(queue.clone());
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        for id in 0..20 {
            let envelope = message(id.to_string()).with_key(id.to_string());
            send(&broker, queue.clone(), envelope).await;
        }
        for _ in 0..20 {
            let dead = Outcome::dead_letter("test", "why");
            receive(&mut consumer).await.settle(dead).await.expect("a dead letter");
        }
        consumer.close().await.expect("a close");
        let retry = format!("{{{name}}}--{name}--retry--p0");
        let aside = format!("{{{name}}}--aside");
        let _: String = run(&broker, cmd("RENAME").arg(&retry).arg(&aside)).await;
        let _: String = run(&broker, cmd("SET").arg(&retry).arg("no stream")).await;
        let error = broker.redrive(&subscription, &Redrive::all()).await;
        assert_eq!(error.expect_err("some are refused").kind(), ErrorKind::Mismatch, "{url}");
        let dlq = format!("{{{name}}}--{name}--dlq");
        let other = format!("{{{name}}}--{name}--retry--p1");
        let stay: usize = run(&broker, cmd("XLEN").arg(&dlq)).await;
        let sent: usize = run(&broker, cmd("XLEN").arg(&other)).await;
        assert!(stay > 0 && sent > 0, "{url}: {stay} stay, {sent} are sent");
        assert_eq!(stay + sent, 20, "{url}: what is refused stays, and nothing else");

        let _: u8 = run(&broker, cmd("DEL").arg(&retry)).await;
        let _: String = run(&broker, cmd("RENAME").arg(&aside).arg(&retry)).await;
        let rest = broker.redrive(&subscription, &Redrive::all()).await.expect("a redrive");
        assert_eq!(rest, stay as u64, "{url}");
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_holds_up_nothing_that_is_due_after_it() {
    for url in servers() {
        let broker = connect(&url).await;
        let name = unique("unread");
        let mut consumer =
            broker.consume(&Subscription::queue(name.clone()), 8).await.expect("a consumer");
        let delayed = format!("{{{name}}}--{name}--delayed");
        let _: u8 = run(&broker, cmd("ZADD").arg(&delayed).arg(1).arg("\u{1}none of ours")).await;
        let outgoing = Outgoing::new(Queue::new(name), message("m"));
        let outgoing = outgoing.with_delay(Duration::from_millis(100));
        broker.producer().send(outgoing).await.expect("a confirmed publish");
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.envelope().id, "m", "{url}");
        ack(delivery).await;
        broker.close().await.expect("a close");
    }
}
