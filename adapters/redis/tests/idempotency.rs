//! The idempotency store on each server.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Begin, Claim, ErrorKind, IdempotencyKey, IdempotencyStore};
use anybroker_redis::RedisIdempotencyStore;
use support::{parse, servers, unique};
use tokio::task::JoinSet;
use tokio::time::sleep;

const LEASE: Duration = Duration::from_mins(1);
const TTL: Duration = Duration::from_hours(1);

async fn stores() -> Vec<RedisIdempotencyStore> {
    let mut stores = Vec::new();
    for url in servers() {
        let url = parse(&format!("{url}?prefix={}", unique("store")));
        stores.push(RedisIdempotencyStore::connect(url).await.expect("a store"));
    }
    stores
}

fn key(id: usize) -> IdempotencyKey {
    IdempotencyKey::new("email", "/shop", &id.to_string())
}

async fn begin(store: &RedisIdempotencyStore, id: usize, lease: Duration) -> Begin {
    store.begin(key(id), 7, lease).await.expect("an answer")
}

async fn claim(store: &RedisIdempotencyStore, id: usize, lease: Duration) -> Claim {
    match begin(store, id, lease).await {
        Begin::Fresh(claim) => claim,
        other => panic!("{id}: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_is_free_then_claimed_then_done() {
    for store in stores().await {
        let first = claim(&store, 1, LEASE).await;
        match begin(&store, 1, LEASE).await {
            Begin::InFlight { remaining } => {
                assert!(remaining <= LEASE && remaining > LEASE / 2, "{remaining:?}");
            }
            other => panic!("{other:?}"),
        }
        let other = store.begin(key(1), 8, LEASE).await.expect("an answer");
        assert!(matches!(other, Begin::Mismatch));
        store.renew(&first, LEASE * 2).await.expect("a renewal");
        let Begin::InFlight { remaining } = begin(&store, 1, LEASE).await else {
            panic!("claimed")
        };
        assert!(remaining > LEASE, "{remaining:?}");
        store.complete(first, TTL).await.expect("done");
        assert!(matches!(begin(&store, 1, LEASE).await, Begin::Done));
        let other = store.begin(key(1), 8, LEASE).await.expect("an answer");
        assert!(matches!(other, Begin::Mismatch));
        assert!(matches!(begin(&store, 2, LEASE).await, Begin::Fresh(_)));
    }
}

#[tokio::test]
async fn an_abandoned_key_is_free() {
    for store in stores().await {
        let first = claim(&store, 1, LEASE).await;
        store.abandon(first).await.expect("abandoned");
        let second = claim(&store, 1, LEASE).await;
        store.complete(second, TTL).await.expect("done");
        assert!(matches!(begin(&store, 1, LEASE).await, Begin::Done));
    }
}

#[tokio::test]
async fn a_claim_that_ran_out_settles_nothing() {
    const SHORT: Duration = Duration::from_millis(50);
    for store in stores().await {
        let [stale, abandoned, untouched] = [
            claim(&store, 1, SHORT).await,
            claim(&store, 2, SHORT).await,
            claim(&store, 3, SHORT).await,
        ];
        sleep(SHORT * 2).await;
        let next = [claim(&store, 1, LEASE).await, claim(&store, 2, LEASE).await];

        let error = store.renew(&stale, LEASE).await.expect_err("it ran out");
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
        let error = store.complete(stale, TTL).await.expect_err("it ran out");
        assert_eq!(error.kind(), ErrorKind::StaleDelivery);
        store.abandon(abandoned).await.expect("no error");
        store.complete(untouched, TTL).await.expect_err("it ran out");

        assert!(matches!(begin(&store, 1, LEASE).await, Begin::InFlight { .. }));
        assert!(matches!(begin(&store, 2, LEASE).await, Begin::InFlight { .. }));
        assert!(matches!(begin(&store, 3, LEASE).await, Begin::Fresh(_)));
        for claim in next {
            store.complete(claim, TTL).await.expect("done");
        }
    }
}

#[tokio::test]
async fn what_is_done_is_forgotten_after_its_ttl() {
    const SHORT: Duration = Duration::from_millis(200);
    for store in stores().await {
        let first = claim(&store, 1, LEASE).await;
        store.complete(first, SHORT).await.expect("done");
        assert!(matches!(begin(&store, 1, LEASE).await, Begin::Done));
        sleep(SHORT * 2).await;
        assert!(matches!(begin(&store, 1, LEASE).await, Begin::Fresh(_)));
    }
}

#[tokio::test]
async fn endless_times_are_taken() {
    for store in stores().await {
        let first = claim(&store, 1, Duration::MAX).await;
        store.renew(&first, Duration::MAX).await.expect("a renewal");
        store.complete(first, Duration::MAX).await.expect("done");
        assert!(matches!(begin(&store, 1, Duration::ZERO).await, Begin::Done));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_gets_the_claim() {
    for store in stores().await {
        let store = Arc::new(store);
        let mut asking = JoinSet::new();
        for _ in 0..50 {
            let store = Arc::clone(&store);
            asking.spawn(async move { begin(&store, 1, LEASE).await });
        }
        let answers = asking.join_all().await;
        let fresh = answers.iter().filter(|answer| matches!(answer, Begin::Fresh(_))).count();
        assert_eq!(fresh, 1);
    }
}

#[tokio::test]
async fn an_operation_runs_whether_or_not_it_is_awaited() {
    for store in stores().await {
        let first = claim(&store, 1, LEASE).await;
        drop(store.abandon(first));
        while !matches!(begin(&store, 1, LEASE).await, Begin::Fresh(_)) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}
