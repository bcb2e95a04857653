//! What a message costs in memory that is no text outside of its payload.
#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use anybroker_core::{Broker, DeadLetterFilter, Outcome, Subscription};
use anybroker_redis::redis::cmd;
use support::{connect, receive, run, server, unique};

const SIZE: usize = 8 * 1024 * 1024;

/// The most memory that this process had since the last call, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kibibytes = line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
    std::fs::write("/proc/self/clear_refs", "5").expect("it can be reset");
    kibibytes * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_take_little_more_than_their_size() {
    let broker = connect(&server()).await;
    for field in ["raw", "ce_tenant"] {
        let name = unique("bytes");
        let subscription = Subscription::queue(name.clone());
        let mut consumer = broker.consume(&subscription, 8).await.expect("a consumer");
        let mut add = cmd("XADD");
        add.arg(&name).arg("*").arg(field).arg(vec![0xff_u8; SIZE]);
        let _: String = run(&broker, &add).await;
        drop(add);
        let before = peak();
        let delivery = receive(&mut consumer).await;
        let received = peak();
        let native = delivery.envelope().headers.get("nativeheaders").expect("it is kept");
        assert!(native.len() < SIZE / 2 * 3, "{} bytes as JSON", native.len());
        delivery.settle(Outcome::Retry { after: Duration::ZERO }).await.expect("a retry");
        let delivery = receive(&mut consumer).await;
        let retried = peak();
        delivery.settle(Outcome::dead_letter("odd", "why")).await.expect("given up");
        let all = DeadLetterFilter::all();
        let dead = broker.dead_letters(&subscription, &all, 1).await.expect("a look").entries;
        assert_eq!(dead.len(), 1);
        println!(
            "{field}: {} MiB before, {} when received, {} when retried",
            before >> 20,
            received >> 20,
            retried >> 20
        );
        // An answer of the server is in memory twice, a call of a script three times, in base64.
        for (after, most) in [(received, 6 * SIZE), (retried, 12 * SIZE)] {
            assert!(after < before + most, "{} MiB more", (after - before) >> 20);
        }
    }
    broker.close().await.expect("a close");
}
