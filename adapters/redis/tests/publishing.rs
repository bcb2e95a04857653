//! What becomes of a message that cannot be stored, told from its neighbours.

mod support;

use anybroker_core::{Broker, ErrorKind, Outgoing, Queue, RetryClass};
use anybroker_redis::redis::{cmd, streams::StreamRangeReply};
use support::{connect, message, run, send, servers, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_stream_is_none_is_told_from_those_beside_it() {
    for url in servers() {
        let broker = connect(&url).await;
        let (good, bad) = (unique("good"), unique("bad"));
        for name in [&good, &bad] {
            send(&broker, Queue::new(name.clone()), message("declared")).await;
        }
        let _: String = run(&broker, cmd("SET").arg(&bad).arg("text")).await;
        let producer = broker.producer();
        let sends: Vec<_> = (0..10)
            .map(|number| {
                let name = if number == 4 { &bad } else { &good };
                producer.send(Outgoing::new(Queue::new(name.clone()), message(number.to_string())))
            })
            .collect();
        for (number, sent) in sends.into_iter().enumerate() {
            let found = sent.await.map_err(|error| (error.kind(), error.retry_class()));
            let refusal = Err((ErrorKind::Mismatch, RetryClass::Permanent));
            assert_eq!(found, if number == 4 { refusal } else { Ok(()) }, "{url}: {number}");
        }
        let stored: StreamRangeReply =
            run(&broker, cmd("XRANGE").arg(&good).arg("-").arg("+")).await;
        let ids: Vec<String> =
            stored.ids.iter().map(|entry| entry.get("ce_id").expect("an id")).collect();
        assert_eq!(ids, ["declared", "0", "1", "2", "3", "5", "6", "7", "8", "9"], "{url}");
        let text: String = run(&broker, cmd("GET").arg(&bad)).await;
        assert_eq!(text, "text", "{url}");
        broker.close().await.expect("a close");
    }
}
