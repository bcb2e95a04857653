//! What AWS answers and no emulator does: that it does not know a queue yet, that a name is not free
//! yet, and that it was asked too often. A proxy says it in front of the emulators.

mod support;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    Broker, Consumer, Delivery, Outcome, Outgoing, Queue, RetryClass, Subscription,
};
use anybroker_sqs::SqsBroker;
use support::{connect, consume, message, send, settle, unique};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A proxy, and how often each action was asked for.
struct Proxy {
    url: String,
    calls: Arc<Mutex<HashMap<String, usize>>>,
    /// Calls but receives that were under way at once.
    most: Arc<AtomicUsize>,
}

impl Proxy {
    /// Refuses an action as `refuse` says by its name and the number of earlier calls.
    async fn start(
        variable: &str,
        refuse: impl Fn(&str, usize) -> Option<&'static str> + Clone + Send + 'static,
    ) -> Self {
        let server = std::env::var(variable).unwrap_or_else(|error| {
            panic!("{variable}: {error}: run `cargo xtask test sqs`, which starts the servers")
        });
        let server = server.trim_start_matches("sqs+http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("sqs+http://{}", listener.local_addr().expect("an address"));
        let calls = Arc::<Mutex<HashMap<String, usize>>>::default();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let proxy = Self { url, calls: Arc::clone(&calls), most: Arc::clone(&most) };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (refuse, server, calls) = (refuse.clone(), server.clone(), Arc::clone(&calls));
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                tokio::spawn(async move {
                    let Some((action, request)) = read(&mut stream).await else { return };
                    let before = {
                        let mut calls = calls.lock().expect("no panic");
                        let count = calls.entry(action.clone()).or_default();
                        *count += 1;
                        *count - 1
                    };
                    let counted = usize::from(action != "ReceiveMessage");
                    most.fetch_max(
                        now.fetch_add(counted, Ordering::SeqCst) + counted,
                        Ordering::SeqCst,
                    );
                    let answer = match refuse(&action, before) {
                        Some(code) => refusal(&request, code).into_bytes(),
                        None => pass_on(&server, &request).await,
                    };
                    now.fetch_sub(counted, Ordering::SeqCst);
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        proxy
    }

    async fn connect(&self, options: &str) -> Arc<SqsBroker> {
        connect(&format!("{}?poll=1s{options}", self.url)).await
    }

    fn calls(&self, action: &str) -> usize {
        self.calls.lock().expect("no panic").get(action).copied().unwrap_or_default()
    }
}

/// The action of the next request, and the request, which is the last on its connection.
async fn read(stream: &mut TcpStream) -> Option<(String, String)> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let Ok(count @ 1..) = stream.read(&mut buffer).await else { return None };
        request.extend_from_slice(&buffer[..count]);
        let text = std::str::from_utf8(&request).ok()?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        if body.len() < header("content-length: ").map_or(0, |n| n.parse().expect("a length")) {
            continue;
        }
        let target = header("x-amz-target: AmazonSQS.");
        let target = target.or_else(|| body.strip_prefix("Action=")?.split('&').next())?;
        let closing = text.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        return Some((target.to_owned(), closing));
    }
}

async fn pass_on(server: &str, request: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut upstream = TcpStream::connect(server).await.expect("the emulator");
    upstream.write_all(request.as_bytes()).await.expect("a request");
    upstream.read_to_end(&mut answer).await.expect("an answer");
    answer
}

/// The next delivery; on the way to it, errors that pass are reported.
async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    let mut out = Vec::new();
    loop {
        let received = poll_fn(|cx| consumer.poll_receive(cx, 1, &mut out));
        let received = timeout(Duration::from_secs(20), received).await.expect("within 20 s");
        match received {
            Ok(()) => return out.pop().expect("a delivery"),
            Err(error) => assert_eq!(error.retry_class(), RetryClass::Transient, "{error}"),
        }
    }
}

/// As SQS and SNS write it.
fn refusal(request: &str, code: &str) -> String {
    let body = if request.contains("x-amz-target") {
        format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"not now"}}"#)
    } else {
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>not now</Message></Error></ErrorResponse>"
        )
    };
    let length = body.len();
    format!("HTTP/1.1 400 X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_just_created_may_be_unknown_for_a_while() {
    let proxy = Proxy::start("ANYBROKER_ELASTICMQ_URL", |action, before| {
        let is_of_a_queue =
            matches!(action, "SendMessageBatch" | "ReceiveMessage" | "GetQueueAttributes");
        (is_of_a_queue && before < 2).then_some("QueueDoesNotExist")
    });
    let proxy = proxy.await;
    let broker = proxy.connect("&sns=off").await;
    let queue = Queue::new(unique("fresh"));
    send(&broker, queue.clone(), message("m0")).await;
    assert_eq!((proxy.calls("CreateQueue"), proxy.calls("SendMessageBatch")), (2, 3));
    let subscription = Subscription::queue(queue);
    broker.depth(&subscription).await.expect("a depth");
    let mut consumer = consume(&broker, &subscription).await;
    let delivery = next(&mut consumer).await;
    settle(delivery, Outcome::Ack).await;
    assert_eq!(proxy.calls("DeleteMessageBatch"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_free_yet_is_waited_for() {
    let proxy = Proxy::start("ANYBROKER_ELASTICMQ_URL", |action, before| {
        (action == "CreateQueue" && before < 3).then_some("QueueDeletedRecently")
    });
    let proxy = proxy.await;
    let broker = proxy.connect("&sns=off").await;
    let subscription = Subscription::queue(unique("again"));
    broker.declare(&subscription).await.expect("declared");
    assert_eq!(proxy.calls("CreateQueue"), 5, "three refused, one for each queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_says_why_a_name_is_not_free() {
    let proxy = Proxy::start("ANYBROKER_ELASTICMQ_URL", |action, _| {
        (action == "CreateQueue").then_some("QueueDeletedRecently")
    });
    let broker = proxy.await.connect("&sns=off&publish-timeout=1s").await;
    let outgoing = Outgoing::new(Queue::new(unique("again")), message("m0"));
    let error = broker.producer().send(outgoing).await.expect_err("there is no queue");
    assert!(error.to_string().contains("wait for the rest of the 60 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_too_often_is_asked_again() {
    let proxy = Proxy::start("ANYBROKER_SQS_URL", |action, before| {
        let code = if before == 0 { "ThrottlingException" } else { "KMS.ThrottlingException" };
        (before < 2).then_some(code)
    });
    let proxy = proxy.await;
    let broker = proxy.connect("&connect=wait").await;
    let topic = unique("slow");
    let subscription = Subscription::topic(topic.clone()).group("g");
    broker.declare(&subscription).await.expect("declared");
    for id in ["m0", "m1"] {
        send(&broker, subscription.destination().clone(), message(id)).await;
    }
    let mut consumer = consume(&broker, &subscription).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        ids.push(delivery.envelope().id.clone());
        settle(delivery, Outcome::Ack).await;
    }
    ids.sort();
    assert_eq!(ids, ["m0", "m1"]);
    consumer.close().await.expect("closed");
    broker.close().await.expect("closed");
    for action in ["CreateTopic", "Subscribe", "PublishBatch", "ReceiveMessage", "CreateQueue"] {
        assert!(proxy.calls(action) > 2, "{action}");
    }
    assert!(proxy.calls("DeleteMessageBatch") > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_groups_are_declared_a_few_at_a_time() {
    let proxy = Proxy::start("ANYBROKER_SQS_URL", |_, _| None).await;
    let broker = proxy.connect("").await;
    let (topic, mut declarations) = (unique("many"), JoinSet::new());
    for group in 0..30 {
        let broker = Arc::clone(&broker);
        let subscription = Subscription::topic(topic.clone()).group(format!("g{group}"));
        declarations.spawn(async move { broker.declare(&subscription).await });
    }
    while let Some(declared) = declarations.join_next().await {
        declared.expect("no panic").expect("declared");
    }
    let most = proxy.most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
    assert_eq!(proxy.calls("Subscribe"), 30);
}
