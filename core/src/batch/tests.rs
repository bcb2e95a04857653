use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::*;
use crate::handler::tests::{Count, count, message};
use crate::{Envelope, Error, ErrorKind, RetryClass, retry_class};

const WAIT: Duration = Duration::from_millis(50);

/// What a batch handler was called with; each batch ends when the test adds a permit.
struct Batches {
    started: mpsc::UnboundedReceiver<Vec<u32>>,
    end: Arc<Semaphore>,
}

impl Batches {
    async fn next(&mut self) -> Vec<u32> {
        self.started.recv().await.unwrap()
    }

    fn end_one(&self) {
        self.end.add_permits(1);
    }

    fn is_idle(&mut self) -> bool {
        self.started.try_recv().is_err()
    }
}

/// Odd numbers fail with their own text.
fn answer(number: u32) -> Result<(), BoxError> {
    if number.is_multiple_of(2) { Ok(()) } else { Err(number.to_string().into()) }
}

fn held(max: usize) -> (impl FnMut(u32) -> BatchHandlerFuture, Batches) {
    let (sender, started) = mpsc::unbounded_channel();
    let end = Arc::new(Semaphore::new(0));
    let batches = Batches { started, end: Arc::clone(&end) };
    let handler = batch_handler_fn(max, WAIT, move |batch: Vec<(Count, Message)>| {
        let numbers: Vec<_> = batch.iter().map(|(count, _)| count.0).collect();
        sender.send(numbers.clone()).unwrap();
        let end = Arc::clone(&end);
        async move {
            end.acquire().await.unwrap().forget();
            numbers.into_iter().map(answer).collect()
        }
    });
    // Clones gather together.
    (move |number| handler.clone().call(count(number)), batches)
}

fn echo<T: IntoOutcome + Send + 'static>(
    answer: impl Fn(Vec<u32>) -> Vec<T> + Send + Sync + 'static,
) -> impl Service<Message, Response = Outcome, Error = BoxError, Future = BatchHandlerFuture> {
    batch_handler_fn(4, WAIT, move |batch: Vec<(Count, Message)>| {
        std::future::ready(answer(batch.into_iter().map(|(count, _)| count.0).collect()))
    })
}

#[tokio::test(start_paused = true)]
async fn lone_message_goes_at_once() {
    let (mut call, mut batches) = held(10);
    let start = Instant::now();
    let alone = call(2);
    assert_eq!(batches.next().await, [2]);
    batches.end_one();
    assert_eq!(alone.await.unwrap(), Outcome::Ack);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn each_message_gets_its_own_result() {
    let (mut call, mut batches) = held(10);
    let calls: Vec<_> = (1..=4).map(&mut call).collect();
    assert_eq!(batches.next().await, [1, 2, 3, 4], "what is called at once goes together");
    batches.end_one();
    for (number, call) in (1..).zip(calls) {
        match call.await {
            Ok(outcome) => assert_eq!((number % 2, outcome), (0, Outcome::Ack)),
            Err(error) => assert_eq!(error.to_string(), number.to_string()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn full_batch_goes_while_another_runs() {
    let (mut call, mut batches) = held(2);
    let calls: Vec<_> = (0..5).map(|number| call(2 * number)).collect();
    let start = Instant::now();
    assert_eq!(batches.next().await, [0, 2]);
    assert_eq!(batches.next().await, [4, 6]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(batches.next().await, [8]);
    assert_eq!(start.elapsed(), WAIT, "two others ran");
    batches.end.add_permits(3);
    for call in calls {
        assert_eq!(call.await.unwrap(), Outcome::Ack);
    }
}

#[tokio::test(start_paused = true)]
async fn partial_batch_goes_when_the_running_one_ends() {
    let (mut call, mut batches) = held(10);
    let first = call(0);
    assert_eq!(batches.next().await, [0]);
    let rest = [call(2), call(4)];
    tokio::time::sleep(WAIT / 2).await;
    assert!(batches.is_idle());

    let start = Instant::now();
    batches.end_one();
    first.await.unwrap();
    assert_eq!(batches.next().await, [2, 4]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    batches.end_one();
    for call in rest {
        call.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn first_message_waits_no_longer_than_its_wait() {
    let (mut call, mut batches) = held(10);
    let first = call(0);
    assert_eq!(batches.next().await, [0]);
    let start = Instant::now();
    let second = call(2);
    tokio::time::sleep(WAIT / 2).await;
    let third = call(4);
    assert_eq!(batches.next().await, [2, 4], "the first still runs");
    assert_eq!(start.elapsed(), WAIT);
    batches.end.add_permits(2);
    for call in [first, second, third] {
        call.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_call_leaves_a_batch_that_has_not_gone() {
    let (mut call, mut batches) = held(10);
    let first = call(0);
    assert_eq!(batches.next().await, [0]);
    let (opener, kept) = (call(2), call(4));
    drop(opener);
    assert_eq!(batches.next().await, [4]);

    // A batch that everybody left is not run, and does not count as running.
    drop(call(6));
    batches.end.add_permits(2);
    first.await.unwrap();
    kept.await.unwrap();
    let last = call(8);
    assert_eq!(batches.next().await, [8]);
    batches.end_one();
    last.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn call_dropped_while_its_batch_runs_takes_no_result_from_the_others() {
    let (mut call, mut batches) = held(10);
    let (dropped, even, odd) = (call(1), call(2), call(3));
    assert_eq!(batches.next().await, [1, 2, 3]);
    let timed_out = tokio::time::timeout(Duration::from_secs(1), dropped).await;
    assert!(timed_out.is_err());
    batches.end_one();
    assert_eq!(even.await.unwrap(), Outcome::Ack);
    assert_eq!(odd.await.unwrap_err().to_string(), "3");
}

#[tokio::test(start_paused = true)]
async fn undecodable_message_joins_no_batch() {
    let mut handler = echo(|numbers| numbers.into_iter().map(answer).collect());
    let (bad, good) = (handler.call(message(Envelope::new("count", "x"))), handler.call(count(2)));
    let error = bad.await.unwrap_err();
    assert_eq!(error.downcast_ref::<Error>().unwrap().kind(), ErrorKind::Undecodable);
    assert_eq!(good.await.unwrap(), Outcome::Ack);
}

async fn all_fail_with(
    mut handler: impl Service<
        Message,
        Response = Outcome,
        Error = BoxError,
        Future = BatchHandlerFuture,
    >,
    text: &str,
) {
    // The second round shows that a failed batch leaves the handler as it was.
    for _ in 0..2 {
        for call in [handler.call(count(1)), handler.call(count(2))] {
            let error = call.await.unwrap_err();
            assert_eq!(error.to_string(), text);
            assert_eq!(retry_class(&error), RetryClass::Transient);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn panic_or_wrong_number_of_results_fails_every_message() {
    all_fail_with(
        echo(|_| -> Vec<()> { panic!("while called") }),
        "the handler panicked: while called",
    )
    .await;
    let polled = batch_handler_fn(4, WAIT, |batch: Vec<(Count, Message)>| async move {
        tokio::task::yield_now().await;
        assert!(batch.is_empty(), "while polled");
        Vec::<()>::new()
    });
    all_fail_with(polled, "the handler panicked: while polled").await;
    for (count, results) in [(1, vec![()]), (3, vec![(); 3])] {
        let text = format!(
            "the batch handler answered {count} results for 2 messages; it must answer one for \
             each, in their order"
        );
        all_fail_with(echo(move |_| results.clone()), &text).await;
    }
}

#[test]
fn batches_of_a_runtime_that_ended_fail_and_hold_up_none() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let (mut call, mut batches) = held(10);
    let first = runtime().unwrap();
    let (running, open) = first.block_on(async {
        let running = call(0);
        assert_eq!(batches.next().await, [0]);
        (running, call(2))
    });
    drop(first);
    runtime().unwrap().block_on(async {
        for call in [running, open] {
            assert_eq!(call.await.unwrap_err().to_string(), "the batch ended before it answered");
        }
        let next = call(4);
        assert_eq!(batches.next().await, [4]);
        batches.end_one();
        next.await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_several_threads_gets_its_own_result() {
    let handler = batch_handler_fn(8, WAIT, async |batch: Vec<(Count, Message)>| {
        let numbers: Vec<_> = batch.into_iter().map(|(count, _)| count.0).collect();
        assert!(numbers.len() <= 8);
        tokio::task::yield_now().await;
        numbers.into_iter().map(answer).collect::<Vec<_>>()
    });
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let mut handler = handler.clone();
            tokio::spawn(async move {
                for number in (caller * 100)..(caller * 100 + 100) {
                    // Some leave before their batch has gone, some while it runs.
                    if number % 5 == 0 {
                        let dropped = handler.call(count(number));
                        tokio::task::yield_now().await;
                        drop(dropped);
                    }
                    match handler.call(count(number)).await {
                        Ok(outcome) => assert_eq!((number % 2, outcome), (0, Outcome::Ack)),
                        Err(error) => assert_eq!(error.to_string(), number.to_string()),
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}
