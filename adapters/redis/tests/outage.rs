//! What an operator reads while the server is away.

mod support;

use std::time::Duration;

use anybroker_core::{Broker, Envelope, ErrorKind, Outgoing, Queue};
use anybroker_testkit::Log;
use anybroker_testkit::brokers::{Redis, RedisVersion};
use support::connect;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn it_is_named_when_it_goes_and_when_it_is_back() {
    let log = Log::keep();
    let launched = spawn_blocking(|| Redis::new(RedisVersion::V8).launch()).await;
    let mut server = launched.expect("no panic").expect("a server of its own");
    let broker = connect(&format!("{}?publish-timeout=5s", server.url())).await;
    let publish = || {
        let outgoing = Outgoing::new(Queue::new("jobs"), Envelope::new("t", "{}"));
        broker.producer().send(outgoing)
    };
    let begun = Instant::now();
    while let Err(error) = publish().await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    let before = log.lines(&["WARN", "link="]).len();
    let mut server = spawn_blocking(move || server.kill().map(|()| server)).await.unwrap().unwrap();
    let begun = Instant::now();
    let is_said = |text: &str| text.contains("away for") && text.contains("nothing listens there");
    let error = loop {
        match broker.health().await {
            Err(error) if is_said(&error.to_string()) => break error,
            answer => assert!(begun.elapsed() < PATIENCE, "{answer:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // One that was on its way when the connection broke only knows that.
    while let Err(error) = publish().await
        && !error.to_string().contains("nothing listens there")
    {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    // The client tries several times meanwhile.
    sleep(Duration::from_secs(3)).await;
    assert!(!log.lines(&["WARN", "the broker is away", "cause="]).is_empty(), "it is in the log");
    let warnings = log.lines(&["WARN", "link="]);
    let links = 2;
    let reminders = usize::try_from(begun.elapsed().as_secs() / 30).expect("a few");
    assert!(warnings.len() <= before + links * (1 + reminders), "{warnings:#?}");
    let server = spawn_blocking(move || server.restart().map(|()| server)).await.unwrap().unwrap();
    let begun = Instant::now();
    let gone = || log.lines(&["WARN", "the broker is away"]).len();
    let back = || log.lines(&["INFO", "the broker is back", "after_ms="]).len();
    while back() < gone() || broker.health().await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "nothing was said: {:#?}", log.lines(&["link="]));
        sleep(Duration::from_millis(50)).await;
    }
    drop(server);
}
