//! Leases: a receive may take a large part of one before its answer is here.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anybroker_core::{BoxError, Message, Outcome, Queue, Subscription, Worker};
use anybroker_testkit::{Proxy, until_handled};
use support::{connect, message, send, unique};
use tokio::time::{Instant, sleep, sleep_until};
use tower::service_fn;

#[tokio::test]
async fn a_message_that_comes_late_in_its_lease_is_handled_once() {
    for variable in ["ANYBROKER_ELASTICMQ_URL", "ANYBROKER_SQS_URL"] {
        let server = std::env::var(variable).expect("the server's URL");
        let options = "?poll=3s&sns=off";
        let direct = connect(&format!("{server}{options}")).await;
        let proxy = Proxy::start(&server).await.expect("a proxy");
        let broker = connect(&format!("{}{options}", proxy.url())).await;
        let lease = Duration::from_secs(12);
        let queue = Queue::new(unique("late"));
        let subscription = Subscription::queue(queue.clone()).lease(lease);

        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let handler = service_fn(move |_: Message| {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                // Past the end of the lease that the receive began.
                sleep(Duration::from_secs(5)).await;
                Ok::<_, BoxError>(Outcome::Ack)
            }
        });
        let worker = Worker::new(broker).subscribe(subscription.clone(), handler);
        let running = worker.start().await.expect("started");
        // The worker renews at thirds of a lease since its start, which is when the first receive
        // began too: the answer comes after the second renewal, and the third would be too late.
        let arrival = Instant::now() + lease * 2 / 3 + Duration::from_millis(300);
        proxy.swallow_answers();
        send(&direct, queue, message("m0")).await;
        sleep_until(arrival).await;
        assert_eq!(runs.load(Ordering::Relaxed), 0, "its answer is on the way");
        proxy.pass();

        let empty = until_handled(&*direct, &subscription);
        tokio::time::timeout(Duration::from_mins(1), empty)
            .await
            .expect("in time")
            .expect("a depth");
        assert_eq!(runs.load(Ordering::Relaxed), 1, "nobody else may have had it meanwhile");
        running.run_until(async {}).await.expect("ended");
    }
}
