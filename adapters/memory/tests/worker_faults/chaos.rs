//! Workers that come and go over handlers that do anything: no message is lost, none is handled
//! twice, attempts are counted right, and keys keep their order.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{
    Broker, DeadLetterFilter, Envelope, Message, Outcome, Outgoing, Queue, Report, Subscription,
    Worker,
};
use tower::service_fn;

use crate::double::{Answer, memory, pass, stop_with};

/// A small generator, so that a seed that fails can be run again.
#[derive(Clone)]
struct Chance(Arc<Mutex<u64>>);

impl Chance {
    fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % limit
    }
}

/// What the handlers did with each message.
#[derive(Default)]
struct Log {
    /// The last attempt of each message, and whether it was used up.
    attempts: HashMap<u64, (u32, bool)>,
    running: HashSet<u64>,
    /// What was finished for good, in order.
    finished: Vec<u64>,
    broken: Vec<String>,
}

const MESSAGES: u64 = 60;
const KEYS: u64 = 4;

async fn run(seed: u64, ordered: bool) {
    let chance = Chance(Arc::new(Mutex::new(seed * 2 + 1)));
    for _ in 0..10 {
        chance.below(2);
    }
    let broker = memory().await;
    let queue = if ordered { Queue::new("work").ordered() } else { Queue::new("work") };
    let subscription =
        Subscription::queue(queue.clone()).lease(Duration::from_secs(1 + chance.below(40)));
    let log: Arc<Mutex<Log>> = Arc::default();
    let mut report = Report::default();
    let mut published = 0;
    let mut round = 0;
    loop {
        let mut workers = Vec::new();
        for _ in 0..=chance.below(2) {
            let worker = Worker::new(broker.clone())
                .subscribe(subscription.clone(), handler(&log, &chance, ordered))
                .concurrency(1 + usize::try_from(chance.below(6)).unwrap())
                .loops(1 + usize::try_from(chance.below(3)).unwrap())
                .drain_timeout(Duration::from_mins(2));
            workers.push(stop_with(worker).await);
        }
        for _ in 0..chance.below(30) {
            if published < MESSAGES {
                publish(&broker, &queue, published, &chance).await;
                published += 1;
            }
            pass(Duration::from_millis(chance.below(2000))).await;
        }
        pass(Duration::from_millis(chance.below(20_000))).await;
        for (stop, run) in workers {
            stop.send(()).unwrap();
            let one = run.await.unwrap();
            assert_eq!(
                (one.stale, one.unsettled, one.discarded),
                (0, 0, 0),
                "seed {seed}: {one:?}"
            );
            report = [report, one].into_iter().sum();
        }
        let depth = broker.depth(&subscription).await.unwrap();
        assert_eq!(depth.in_flight, Some(0), "seed {seed}: {depth:?}");
        round += 1;
        assert!(round < 500, "seed {seed}: it does not end: {depth:?}");
        if published == MESSAGES && depth.ready == Some(0) && depth.delayed == Some(0) {
            break;
        }
    }
    let letters = broker.dead_letters(&subscription, &DeadLetterFilter::all(), 1000).await.unwrap();
    let log = log.lock().unwrap();
    assert_eq!(log.broken, [""; 0], "seed {seed}");
    let mut finished = log.finished.clone();
    finished.sort_unstable();
    assert_eq!(finished, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}");
    assert_eq!(report.handled + report.dead_lettered, MESSAGES, "seed {seed}: {report:?}");
    assert_eq!(report.dead_lettered, letters.entries.len() as u64, "seed {seed}");
    if ordered {
        for key in 0..KEYS {
            let of_key: Vec<_> = log.finished.iter().filter(|id| *id % KEYS == key).collect();
            assert!(of_key.is_sorted(), "seed {seed}: {of_key:?}");
        }
    }
}

async fn publish(broker: &Arc<dyn Broker>, queue: &Queue, id: u64, chance: &Chance) {
    let envelope =
        Envelope::new("work", "{}").with_id(id.to_string()).with_key((id % KEYS).to_string());
    let mut outgoing = Outgoing::new(queue.clone(), envelope);
    if chance.below(4) == 0 {
        outgoing.delay = Some(Duration::from_millis(chance.below(10_000)));
    }
    broker.producer().send(outgoing).await.unwrap();
}

fn handler(log: &Arc<Mutex<Log>>, chance: &Chance, ordered: bool) -> impl anybroker_core::Handler {
    let (log, chance) = (Arc::clone(log), chance.clone());
    service_fn(move |message: Message| {
        let (log, chance) = (Arc::clone(&log), chance.clone());
        let id: u64 = message.envelope().id.parse().unwrap();
        start(&log, id, message.attempt(), ordered);
        let at_once = chance.below(3) == 0;
        let sleep = Duration::from_millis(chance.below(4000));
        // The default retry gives a message up after its fifth attempt.
        let panics = chance.below(20) == 0 && message.attempt() < 5;
        let decide = move |log: &Mutex<Log>| {
            let after = Duration::from_millis(
                [0, 10, 3000, 9000][usize::try_from(chance.below(4)).unwrap()],
            );
            let choice = if message.attempt() > 12 { 0 } else { chance.below(10) };
            let mut log = log.lock().unwrap();
            log.running.remove(&id);
            let (used, last, answer) = match choice {
                0..=4 => (true, true, Answer::Ok(Outcome::Ack)),
                5 => (true, true, Ok(Outcome::dead_letter("no", "no"))),
                6 | 7 => (true, false, Ok(Outcome::Retry { after })),
                8 => (false, false, Ok(Outcome::Release { after })),
                // The default retry, five times at most.
                _ => (true, message.attempt() >= 5, Err("no".into())),
            };
            log.attempts.insert(id, (message.attempt(), used));
            if last {
                log.finished.push(id);
            }
            answer
        };
        async move {
            if !at_once {
                tokio::time::sleep(sleep).await;
            }
            if panics {
                log.lock().unwrap().running.remove(&id);
                panic!("chaos");
            }
            decide(&log)
        }
    })
}

/// A panic in here would be the handler's: what is broken is noted.
fn start(log: &Mutex<Log>, id: u64, attempt: u32, ordered: bool) {
    let mut log = log.lock().unwrap();
    let (last, used) = log.attempts.insert(id, (attempt, true)).unwrap_or((0, true));
    let of_key = log.running.iter().filter(|other| *other % KEYS == id % KEYS).count();
    for (is_broken, what) in [
        (attempt != last + u32::from(used), format!("after attempt {last} ({used}) {attempt}")),
        (log.finished.contains(&id), "comes again".to_owned()),
        (!log.running.insert(id), "runs twice".to_owned()),
        (ordered && of_key > 0, "overtakes".to_owned()),
    ] {
        if is_broken {
            log.broken.push(format!("message {id}: {what}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_repeated_or_miscounted() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(10);
    for seed in 0..seeds {
        run(seed, false).await;
        run(seed, true).await;
    }
}
