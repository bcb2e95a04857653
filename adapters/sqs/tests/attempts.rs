//! Attempts, leases and long delays: what SQS's own counter does not tell.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, DeadLetterFilter, ErrorKind, Outcome, Outgoing, Queue, Subscription};
use support::{ack, both, connect, consume, message, receive, send, settle, try_receive, unique};

const AT_ONCE: Duration = Duration::ZERO;

#[tokio::test]
async fn releases_do_not_use_up_attempts() {
    for broker in both().await {
        for queue in [Queue::new(unique("plain")), Queue::new(unique("fifo")).ordered()] {
            let subscription = Subscription::queue(queue.clone());
            send(&broker, queue, message("m0").with_key("k")).await;
            // More in all than `max_deliveries`, were they counted: half by the handler, half by
            // the end of a consumer.
            for _ in 0..8 {
                let mut consumer = consume(&broker, &subscription).await;
                let delivery = receive(&mut consumer).await;
                assert_eq!(delivery.attempt(), 1);
                settle(delivery, Outcome::Release { after: AT_ONCE }).await;
                let delivery = receive(&mut consumer).await;
                assert_eq!(delivery.attempt(), 1);
                settle(delivery, Outcome::Release { after: AT_ONCE }).await;
                consumer.close().await.expect("closed");
            }
            let mut consumer = consume(&broker, &subscription).await;
            let delivery = receive(&mut consumer).await;
            assert_eq!(delivery.attempt(), 1);
            settle(delivery, Outcome::Ack).await;
        }
    }
}

#[tokio::test]
async fn a_stale_receipt_settles_nothing() {
    for broker in both().await {
        let queue = Queue::new(unique("stale"));
        let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(1));
        send(&broker, queue, message("m0")).await;
        let mut first = consume(&broker, &subscription).await;
        let stale = receive(&mut first).await;
        let mut second = consume(&broker, &subscription).await;
        let fresh = receive(&mut second).await;
        assert_eq!(fresh.attempt(), 2);
        let error = stale.settle(Outcome::dead_letter("late", "")).await.expect_err("it is late");
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
        settle(fresh, Outcome::Ack).await;
        let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 10).await;
        assert!(letters.expect("an answer").entries.is_empty());
    }
}

#[tokio::test]
async fn what_is_due_far_away_stays_hidden_and_keeps_its_attempts() {
    for broker in both().await {
        let queue = Queue::new(unique("far"));
        let subscription = Subscription::queue(queue.clone());
        // Longer than SQS hides a new message.
        let day = Duration::from_hours(24);
        let outgoing = Outgoing::new(queue.clone(), message("delayed")).with_delay(day);
        broker.producer().send(outgoing).await.expect("stored");
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!((depth.ready, depth.delayed), (Some(0), Some(1)));

        // Where that time is over, a message comes early, again and again.
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let body = r#"{"specversion":"1.0","id":"early","source":"s","type":"t","abattempts":3,
            "notbefore":"2999-01-01T00:00:00Z","data":1}"#;
        broker.sqs().send_message().queue_url(&url).message_body(body).send().await.expect("sent");
        let mut consumer = consume(&broker, &subscription).await;
        let delivery = receive(&mut consumer).await;
        assert_eq!((&*delivery.envelope().id, delivery.attempt()), ("early", 4));
        settle(delivery, Outcome::Release { after: day * 365 }).await;
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!((depth.ready, depth.in_flight), (Some(0), Some(1)), "hidden as it is");
        assert!(try_receive(&mut consumer, Duration::from_millis(500)).await.is_none());
    }
}

#[tokio::test]
async fn attempts_that_were_counted_in_the_process_survive_a_retry() {
    for broker in both().await {
        let queue = Queue::new(unique("counted"));
        let subscription = Subscription::queue(queue.clone());
        send(&broker, queue, message("m0")).await;
        let mut consumer = consume(&broker, &subscription).await;
        for attempt in 1..=3 {
            let delivery = receive(&mut consumer).await;
            assert_eq!(delivery.attempt(), attempt);
            settle(delivery, Outcome::Retry { after: AT_ONCE }).await;
        }
        consumer.close().await.expect("closed");
        let mut consumer = consume(&broker, &subscription).await;
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 4);
        settle(delivery, Outcome::Release { after: AT_ONCE }).await;
        assert_eq!(ack(&mut consumer, 1).await, ["m0"]);
    }
}

#[tokio::test]
async fn what_came_back_often_is_handed_out_alone_and_keeps_nobody_waiting() {
    for broker in both().await {
        let queue = Queue::new(unique("suspect"));
        let subscription = Subscription::queue(queue.clone()).max_deliveries(5);
        let mut consumer = consume(&broker, &subscription).await;
        send(&broker, queue.clone(), message("calm")).await;
        assert_eq!(ack(&mut consumer, 1).await, ["calm"]);

        let url = broker.queue_url(&subscription).await.expect("a URL");
        send(&broker, queue.clone(), message("suspect")).await;
        let mut receipt = None;
        for visibility in [0, 30] {
            let receive = broker.sqs().receive_message().queue_url(&url).wait_time_seconds(5);
            let received = receive.visibility_timeout(visibility).send().await.expect("received");
            receipt = received.messages()[0].receipt_handle().map(ToOwned::to_owned);
        }
        send(&broker, queue, message("fresh")).await;
        let show = broker.sqs().change_message_visibility().queue_url(&url).visibility_timeout(0);
        show.set_receipt_handle(receipt).send().await.expect("visible");

        let mut ids = Vec::new();
        for _ in 0..2 {
            let delivery = receive(&mut consumer).await;
            ids.push(delivery.envelope().id.clone());
            let next = try_receive(&mut consumer, Duration::from_millis(200)).await;
            assert!(next.is_none(), "each alone: {ids:?} and {next:?}");
            settle(delivery, Outcome::Ack).await;
        }
        ids.sort();
        assert_eq!(ids, ["fresh", "suspect"]);
    }
}

#[tokio::test]
async fn what_a_closing_consumer_receives_last_keeps_its_time() {
    for variable in ["ANYBROKER_ELASTICMQ_URL", "ANYBROKER_SQS_URL"] {
        let server = std::env::var(variable).expect("the server's URL");
        let broker = connect(&format!("{server}?poll=8s&sns=off")).await;
        let queue = Queue::new(unique("closing"));
        let subscription = Subscription::queue(queue.clone());
        broker.declare(&subscription).await.expect("declared");
        let delay = Duration::from_millis(4900);
        let outgoing = Outgoing::new(queue, message("m0")).with_delay(delay);
        broker.producer().send(outgoing).await.expect("stored");
        let mut consumer = consume(&broker, &subscription).await;
        // SQS keeps it for whole seconds, and gives it to the receive that is under way.
        assert!(try_receive(&mut consumer, Duration::from_secs(1)).await.is_none());
        consumer.close().await.expect("closed");
        let mut consumer = consume(&broker, &subscription).await;
        let delivery = receive(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1);
        assert!(delivery.hop().not_before.is_some(), "nothing says when it is due");
        settle(delivery, Outcome::Ack).await;
    }
}

#[tokio::test]
async fn what_is_due_much_later_and_goes_back_stays_hidden() {
    for broker in both().await {
        let queue = Queue::new(unique("hidden"));
        let subscription = Subscription::queue(queue.clone());
        let url = broker.queue_url(&subscription).await.expect("a URL");
        let body = r#"{"specversion":"1.0","id":"early","source":"s","type":"t",
            "notbefore":"2999-01-01T00:00:00Z","data":1}"#;
        broker.sqs().send_message().queue_url(&url).message_body(body).send().await.expect("sent");
        let mut consumer = consume(&broker, &subscription).await;
        settle(receive(&mut consumer).await, Outcome::Release { after: AT_ONCE }).await;
        let depth = broker.depth(&subscription).await.expect("a depth");
        assert_eq!((depth.ready, depth.in_flight), (Some(0), Some(1)), "hidden as it is");
    }
}
