//! Errors: addresses, credentials and regions that are wrong, and servers that misbehave.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anybroker_core::{Broker, Error, ErrorKind, Outgoing, Queue, RetryClass};
use support::{connect, message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

async fn refusal(url: &str) -> Error {
    let error = match url.parse() {
        Ok(url) => anybroker_sqs::connect(url).await.expect_err("it cannot connect"),
        Err(error) => error,
    };
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    error
}

/// A server that answers each request as it is told to, by the name of its operation.
async fn server(answer: impl Fn(&str) -> Answer + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move { serve(stream, answer).await });
        }
    });
    address.to_string()
}

enum Answer {
    Json(u16, &'static str),
    Nothing,
    Silence,
}

async fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Answer) {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
        request.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&request).to_string();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let header = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
        };
        let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
        if body.len() < length {
            continue;
        }
        let operation = header("x-amz-target:").unwrap_or_default();
        let operation = operation.rsplit('.').next().unwrap_or_default();
        match answer(operation) {
            Answer::Json(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + body).as_bytes()).await;
                request.clear();
            }
            Answer::Nothing => return,
            Answer::Silence => std::future::pending().await,
        }
    }
}

/// Answers what it takes to declare a queue.
fn declared(operation: &str) -> Option<&'static str> {
    Some(match operation {
        "listqueues" => "{}",
        "getqueueurl" => r#"{"QueueUrl":"http://localhost/1/q"}"#,
        _ => return None,
    })
}

#[tokio::test]
async fn a_wrong_address_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let error = refusal(&format!("sqs+http://key:s3cret@{address}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.retry_class(), RetryClass::Transient);
    assert!(error.to_string().contains("check endpoint and region"), "{error}");
}

#[tokio::test]
async fn a_peer_that_is_not_sqs_is_told_with_its_status() {
    for (status, class) in [(404, RetryClass::Permanent), (502, RetryClass::Ambiguous)] {
        let other = server(move |_| Answer::Json(status, "<html>not here</html>")).await;
        let error = refusal(&format!("sqs+http://key:s3cret@{other}")).await;
        let text = error.to_string();
        assert!(text.contains(&status.to_string()), "{text}");
        assert!(text.contains("not SQS or SNS") && text.contains("check the endpoint"), "{text}");
        assert_eq!(error.retry_class(), class, "{text}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied_without_naming_them() {
    let deny = r#"{"__type":"com.amazon.coral.service#UnrecognizedClientException",
        "message":"The security token included in the request is invalid: s3cret"}"#;
    let address = server(move |_| Answer::Json(403, deny)).await;
    let url = format!("sqs+http://key:s3cret@{address}").parse().expect("a URL");
    let error = anybroker_sqs::connect(url).await.expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("check access key, secret and region"), "{error}");
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn wrong_urls_say_what_to_write() {
    for (url, advice) in [
        ("sqs://key:s3cret@eu_central", "such as eu-central-1"),
        ("sqs://localhost:9324", "sqs+http://host:port"),
        ("sqs+http://", "sqs+http://host"),
        ("sqs+http://localhost/queue", "has a path"),
        ("sqs+http://localhost?pol=1s", "did you mean \"poll\"?"),
        ("sqs+http://localhost?sns=no", "write off, or an address"),
        ("sqs+http://localhost?prefix=a--b", "`--`"),
    ] {
        let error = refusal(url).await;
        assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Invalid), "{error}");
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_ambiguous_and_not_repeated() {
    let sends = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sends);
    let address = server(move |operation| match declared(operation) {
        Some(answer) => Answer::Json(200, answer),
        None => {
            counted.fetch_add(1, Ordering::Relaxed);
            Answer::Nothing
        }
    })
    .await;
    let broker = connect(&format!("sqs+http://{address}")).await;
    let sent = broker.producer().send(Outgoing::new(Queue::new("q"), message("m0"))).await;
    let error = sent.expect_err("nobody knows");
    assert_eq!(error.retry_class(), RetryClass::Ambiguous, "{error}");
    assert_eq!(sends.load(Ordering::Relaxed), 1, "to repeat it could store it twice");
}

#[tokio::test]
async fn a_server_that_is_silent_ends_a_publish_by_its_deadline() {
    let address = server(|operation| match declared(operation) {
        Some(answer) => Answer::Json(200, answer),
        None => Answer::Silence,
    })
    .await;
    let broker = connect(&format!("sqs+http://{address}?publish-timeout=1s")).await;
    let began = Instant::now();
    let sent = broker.producer().send(Outgoing::new(Queue::new("q"), message("m0"))).await;
    let error = sent.expect_err("there was no answer");
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Timeout, RetryClass::Ambiguous));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_throttled_publish_waits_for_its_turn() {
    let throttled = r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow down"}"#;
    let sends = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sends);
    let address = server(move |operation| match declared(operation) {
        Some(answer) => Answer::Json(200, answer),
        None if counted.fetch_add(1, Ordering::Relaxed) < 3 => Answer::Json(400, throttled),
        None => Answer::Json(
            200,
            r#"{"Successful":[{"Id":"0","MessageId":"m","MD5OfMessageBody":""}]}"#,
        ),
    })
    .await;
    let broker = connect(&format!("sqs+http://{address}")).await;
    let sent = broker.producer().send(Outgoing::new(Queue::new("q"), message("m0"))).await;
    sent.expect("stored in the end");
    assert_eq!(sends.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn connecting_may_wait_for_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let url = format!("sqs+http://{address}?connect=wait");
    let waiting = tokio::spawn(async move { connect(&url).await });
    sleep(Duration::from_millis(600)).await;
    assert!(!waiting.is_finished());
    let listener = TcpListener::bind(address).await.expect("the port again");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, |_| Answer::Json(200, "{}")));
        }
    });
    let broker = waiting.await.expect("no panic");
    broker.health().await.expect("it answers");
}
