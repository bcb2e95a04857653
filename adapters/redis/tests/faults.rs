//! What a server, a login or a setting can do wrong, and what the errors say.

mod support;

use std::time::Duration;

use anybroker_core::{
    Broker, Error, ErrorKind, Outcome, Outgoing, Queue, Redrive, RetryClass, Subscription,
};
use anybroker_redis::redis::cmd;
use anybroker_testkit::brokers::{Redis, RedisVersion, Server};
use support::{ack_all, connect, message, parse, receive, run, send, server, unique};
use tokio::time::timeout;

async fn launch(redis: Redis) -> Server {
    let launched = tokio::task::spawn_blocking(move || redis.launch());
    launched.await.expect("no panic").expect("a server of its own")
}

async fn refusal(url: &str) -> Error {
    anybroker_redis::connect(parse(url)).await.expect_err("it cannot connect")
}

fn check(error: &Error, kind: ErrorKind, words: &str) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text} {cause} {cause:?}");
        source = cause.source();
    }
    assert!(error.to_string().contains(words), "{error}");
    assert!(!text.contains("hush"), "a secret: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_says_so_and_no_secret() {
    let server = launch(Redis::new(RedisVersion::V8).user("app", "hush-1").tls()).await;
    let broker = connect(server.url()).await;
    broker.health().await.expect("a healthy server");
    broker.close().await.expect("a close");
    let address = server.url().rsplit('@').next().expect("an address").to_owned();
    let login = "check user and password in the URL";
    for credentials in ["app:hush-2", "other:hush-1", ":hush-1"] {
        let error = refusal(&format!("redis://{credentials}@{address}")).await;
        check(&error, ErrorKind::Denied, login);
    }
    let error = refusal(&format!("redis://{address}")).await;
    check(&error, ErrorKind::Denied, login);

    let tls = server.tls().expect("a listener with TLS");
    let authority = tls.authority.display();
    let broker = connect(&format!("{}?ca={authority}", tls.url)).await;
    send(&broker, Queue::new("secret"), message("m")).await;
    broker.close().await.expect("a close");
    let error = refusal(&tls.url).await;
    check(&error, ErrorKind::Config, "check the certificates");
    let error = refusal(&format!("{}?ca=/nowhere.pem", tls.url)).await;
    check(&error, ErrorKind::Config, "cannot read /nowhere.pem");
    let plain = tls.url.replacen("rediss", "redis", 1);
    check(&refusal(&plain).await, ErrorKind::Config, "write rediss://");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_url_says_what_to_write() {
    for (url, kind, words) in [
        ("redis://", ErrorKind::Config, "names no host"),
        ("amqp://h", ErrorKind::Config, "write redis:// or valkey://"),
        ("redis://h/one", ErrorKind::Config, "write its number"),
        ("redis://h?conect=wait", ErrorKind::Config, "did you mean \"connect\""),
        ("redis://h?connect=soon", ErrorKind::Config, "write once or wait"),
        ("redis://h?durability=some", ErrorKind::Config, "write warn or require"),
        ("redis://h?prefix=a--b", ErrorKind::Invalid, "contains `--`"),
        ("rediss://h?cert=/a", ErrorKind::Config, "belong together"),
        ("redis://127.0.0.1:1", ErrorKind::Unavailable, "nothing listens there"),
    ] {
        check(&refusal(url).await, kind, words);
    }
    let error = refusal(&format!("{}/99999", server())).await;
    check(&error, ErrorKind::Config, "redis://host/0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_told() {
    let url = server();
    let broker = connect(&url).await;
    let (user, name) = (unique("user"), unique("rights"));
    let login = |password: &str| url.replacen("://", &format!("://{user}:{password}@"), 1);
    let mut command = cmd("ACL");
    command.arg("SETUSER").arg(&user).arg("on").arg(">hush").arg("~*").arg("+@all");
    let _: String = run(&broker, command.arg("-config").arg("-client|unblock")).await;
    // Without CONFIG all works, and only the guarantee is unknown.
    let limited = connect(&login("hush")).await;
    assert!(!limited.durability().await.expect("an answer").is_kept());
    let queue = || Queue::new(name.clone());
    send(&limited, queue(), message("m")).await;
    let mut consumer = limited.consume(&Subscription::queue(queue()), 1).await.expect("a consumer");
    assert_eq!(ack_all(&mut consumer, 1).await, ["m"]);
    check(
        &refusal(&format!("{}?durability=require", login("hush"))).await,
        ErrorKind::Config,
        "nothing is known",
    );

    let _: String = run(&broker, cmd("ACL").arg("SETUSER").arg(&user).arg("-xadd")).await;
    let refused = limited.producer().send(Outgoing::new(queue(), message("m"))).await;
    let error = refused.expect_err("it may not");
    check(&error, ErrorKind::Denied, "lacks the right");
    assert_eq!(error.retry_class(), RetryClass::Permanent);
    limited.close().await.expect("a close");
    let _: u8 = run(&broker, cmd("ACL").arg("DELUSER").arg(&user)).await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_permissions_are_enough() {
    let url = server();
    let broker = connect(&url).await;
    let (user, name) = (unique("user"), unique("allowed"));
    let mut command = cmd("ACL");
    command.arg("SETUSER").arg(&user).arg("on").arg(">hush").arg(format!("~{name}"));
    command.arg(format!("~{{{name}}}--*"));
    for right in "+@stream +@scripting +@connection +set +get +del +exists +pexpire +hget +hset \
                  +zadd +zrem +zrange +zrangebyscore +zcard +time"
        .split_whitespace()
    {
        command.arg(right);
    }
    let _: String = run(&broker, &command).await;
    let limited = connect(&url.replacen("://", &format!("://{user}:hush@"), 1)).await;
    for queue in [Queue::new(name.clone()), Queue::new(name.clone()).ordered()] {
        let subscription = Subscription::queue(queue.clone());
        let mut consumer = limited.consume(&subscription, 8).await.expect("a consumer");
        for id in ["retried", "released", "dead", "dropped"] {
            send(&limited, queue.clone(), message(id).with_key("k")).await;
        }
        let delayed = Outgoing::new(queue.clone(), message("delayed"));
        let delayed = delayed.with_delay(Duration::from_millis(100));
        limited.producer().send(delayed).await.expect("a confirmed publish");
        let mut handled = 0;
        while handled < 4 {
            let delivery = receive(&mut consumer).await;
            let outcome = match (&*delivery.envelope().id, delivery.attempt()) {
                ("retried", 1) => Outcome::Retry { after: Duration::from_millis(100) },
                ("dropped", 1) => {
                    drop(delivery);
                    continue;
                }
                ("dead", _) => Outcome::dead_letter("test", ""),
                _ => Outcome::Ack,
            };
            handled += usize::from(outcome == Outcome::Ack);
            delivery.settle(outcome).await.expect("a settlement");
        }
        let depth = limited.depth(&subscription).await.expect("a depth");
        assert_eq!(
            (depth.ready, depth.in_flight, depth.dead_lettered),
            (Some(0), Some(0), Some(1))
        );
        let all = Redrive::all();
        assert_eq!(limited.redrive(&subscription, &all).await.expect("a redrive"), 1);
        ack_all(&mut consumer, 1).await;
        assert_eq!(limited.purge_dead_letters(&subscription).await.expect("a purge"), 0);
        consumer.close().await.expect("a close");
        let _: u8 = run(&broker, cmd("DEL").arg(&name)).await;
        let _: u8 = run(&broker, cmd("DEL").arg(format!("{{{name}}}--meta"))).await;
        let _: u8 = run(&broker, cmd("DEL").arg(format!("{{{name}}}--{name}--retry"))).await;
    }
    limited.close().await.expect("a close");
    let _: u8 = run(&broker, cmd("ACL").arg("DELUSER").arg(&user)).await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_break_the_guarantee_are_told_or_refused() {
    let server = launch(
        Redis::new(RedisVersion::V7_0)
            .config("appendonly no")
            .config("maxmemory 200mb")
            .config("maxmemory-policy allkeys-lru"),
    )
    .await;
    let broker = connect(server.url()).await;
    let problems = broker.durability().await.expect("an answer").problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    let error = refusal(&format!("{}?durability=require", server.url())).await;
    check(&error, ErrorKind::Config, "set noeviction");
    check(&error, ErrorKind::Config, "set appendonly yes");
    let _: String =
        run(&broker, cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("noeviction")).await;
    let _: String = run(&broker, cmd("CONFIG").arg("SET").arg("appendonly").arg("yes")).await;
    let mut kept = connect(&format!("{}?durability=require", server.url())).await;
    assert!(kept.durability().await.expect("an answer").is_kept());
    kept.close().await.expect("a close");
    let _: String = run(&broker, cmd("CONFIG").arg("SET").arg("appendfsync").arg("everysec")).await;
    check(
        &refusal(&format!("{}?durability=require", server.url())).await,
        ErrorKind::Config,
        "set always",
    );
    kept = connect(server.url()).await;
    kept.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_refuses_and_loses_nothing() {
    for version in [RedisVersion::V7_0, RedisVersion::V8, RedisVersion::Valkey9] {
        let server = launch(Redis::new(version).config("maxmemory 30mb")).await;
        let broker = connect(server.url()).await;
        let subscription = Subscription::queue("full");
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        let ordered = Queue::new("full-in-order").ordered();
        send(&broker, ordered.clone(), message("m").with_key("k")).await;
        let (producer, mut confirmed) = (broker.producer(), Vec::new());
        let mut refused = None;
        for number in 0..1000 {
            let mut envelope = message(number.to_string());
            envelope.payload = vec![b'x'; 100_000].into();
            match producer.send(Outgoing::new(Queue::new("full"), envelope)).await {
                Ok(()) => confirmed.push(number.to_string()),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let error = refused.expect("the memory is full");
        check(&error, ErrorKind::Blocked, "raise maxmemory");
        assert_eq!(error.retry_class(), RetryClass::Transient);
        // What frees room goes on: a group that exists is consumed, and its messages may fail.
        consumer.close().await.expect("a close");
        consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        let in_order = Subscription::queue(ordered);
        let mut owner = broker.consume(&in_order, 8).await.expect("a consumer");
        assert_eq!(ack_all(&mut owner, 1).await, ["m"]);
        owner.close().await.expect("a close");
        let first = receive(&mut consumer).await;
        let mut handled = vec![first.envelope().id.clone()];
        first.settle(Outcome::dead_letter("test", "broken")).await.expect("a dead letter");
        let second = receive(&mut consumer).await;
        let id = second.envelope().id.clone();
        let later = Outcome::Retry { after: Duration::from_millis(10) };
        second.settle(later).await.expect("a retry");
        while handled.len() < confirmed.len() {
            let delivery = receive(&mut consumer).await;
            assert_eq!(delivery.attempt(), 1 + u32::from(delivery.envelope().id == id));
            handled.push(delivery.envelope().id.clone());
            delivery.settle(Outcome::Ack).await.expect("an acknowledgement");
        }
        assert_eq!(broker.purge_dead_letters(&subscription).await.expect("a purge"), 1);
        handled.sort_unstable();
        confirmed.sort_unstable();
        assert_eq!(handled, confirmed);
        // There is room again once all is removed.
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while producer.send(Outgoing::new(Queue::new("full"), message("more"))).await.is_err() {
            assert!(tokio::time::Instant::now() < end, "no room although all is handled");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        broker.close().await.expect("a close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_declared_holds_up_no_other() {
    let server = launch(Redis::new(RedisVersion::V8)).await;
    let broker = connect(server.url()).await;
    let producer = broker.producer();
    let send = |queue: &'static str, id: &str| {
        producer.send(Outgoing::new(Queue::new(queue), message(id)))
    };
    send("known", "m").await.expect("a confirmed publish");
    let memory = async |limit: &str| {
        let _: String = run(&broker, cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit)).await;
    };
    memory("1").await;
    let mut first = send("new", "1");
    let patience = Duration::from_secs(5);
    for id in ["a", "b"] {
        let answer = timeout(patience, send("known", id)).await.expect("it waits for no other");
        check(&answer.expect_err("the memory is full"), ErrorKind::Blocked, "raise maxmemory");
        let waits = timeout(Duration::from_millis(100), &mut first).await;
        assert!(waits.is_err(), "it is tried again until its time is over: {waits:?}");
    }
    let second = send("new", "2");
    memory("0").await;
    for send in [first, second] {
        timeout(patience, send).await.expect("soon").expect("a confirmed publish");
    }
    let mut consumer = broker.consume(&Subscription::queue("new"), 8).await.expect("a consumer");
    assert_eq!(ack_all(&mut consumer, 2).await, ["1", "2"]);
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_leaves_it_open_whether_a_message_arrived() {
    let server = launch(Redis::new(RedisVersion::V8)).await;
    let broker = connect(&format!("{}?publish-timeout=2s", server.url())).await;
    send(&broker, Queue::new("stopped"), message("m")).await;
    server.pause().expect("a server of its own");
    let begun = std::time::Instant::now();
    let error = broker.producer().send(Outgoing::new(Queue::new("stopped"), message("n"))).await;
    let error = error.expect_err("nobody answers");
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Timeout, RetryClass::Ambiguous));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    server.resume().expect("it goes on");
    broker.health().await.expect("it answers again");
    send(&broker, Queue::new("stopped"), message("o")).await;
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_says_so() {
    let broker = connect(&server()).await;
    let name = unique("taken");
    let _: String = run(&broker, cmd("SET").arg(&name).arg("text")).await;
    let refused = broker.producer().send(Outgoing::new(Queue::new(name.clone()), message("m")));
    let error = refused.await.expect_err("it is no stream");
    check(&error, ErrorKind::Mismatch, "taken by something else");
    let error = broker.consume(&Subscription::queue(name), 1).await.expect_err("it is no stream");
    check(&error, ErrorKind::Mismatch, "taken by something else");
    broker.close().await.expect("a close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_a_replica_is_left_for_the_next_host() {
    let former = launch(Redis::new(RedisVersion::V8)).await;
    let latter = launch(Redis::new(RedisVersion::V8)).await;
    let address = |server: &Server| server.url().trim_start_matches("redis://").to_owned();
    let (first, second) = (address(&former), address(&latter));
    let broker = connect(&format!("redis://{first},{second}")).await;
    let subscription = Subscription::queue("demoted");
    let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
    send(&broker, Queue::new("demoted"), message("before")).await;
    assert_eq!(ack_all(&mut consumer, 1).await, ["before"]);

    let direct = connect(former.url()).await;
    let (host, port) = second.split_once(':').expect("a host and a port");
    let _: String = run(&direct, cmd("REPLICAOF").arg(host).arg(port)).await;
    drop(direct);
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) =
        broker.producer().send(Outgoing::new(Queue::new("demoted"), message("after"))).await
    {
        check(&error, ErrorKind::Unavailable, "");
        assert!(tokio::time::Instant::now() < end, "it stays with the replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ack_all(&mut consumer, 1).await, ["after"]);
    check(&refusal(former.url()).await, ErrorKind::Unavailable, "is a replica");
    broker.close().await.expect("a close");
}
