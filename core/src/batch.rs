use std::fmt;
use std::future::{Future, poll_fn};
use std::mem::take;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tower::Service;

use crate::handler::{caught, poll_caught};
use crate::{BoxError, IntoOutcome, Message, Outcome, TypedMessage};

/// Makes a handler that gathers concurrent calls into one call of an async function, which answers
/// with one result per message, in their order.
///
/// A batch goes when it has `max` messages, when no other batch runs, or when its first message
/// has waited for `wait`. So a lone message goes at once, and under load the next batch gathers
/// while the last one runs. Clones gather together, and each message still passes the layers above
/// on its own: it is retried, timed out and dead-lettered alone.
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// # use anybroker_macros::Event;
/// # use std::time::Duration;
/// use anybroker::{BoxError, Message, batch_handler_fn};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(type = "order.created")]
/// struct OrderCreated { order_id: u64 }
///
/// async fn insert(batch: Vec<(OrderCreated, Message)>) -> Vec<Result<(), BoxError>> {
///     // One statement for all of them; here all of them succeed.
///     batch.iter().map(|_| Ok(())).collect()
/// }
/// let handler = batch_handler_fn(100, Duration::from_millis(50), insert);
/// # fn is_handler(_: impl anybroker::Handler) {}
/// # is_handler(handler);
/// ```
///
/// Only calls that run at once can be gathered: a `max` above the worker's concurrency never
/// fills, and such a batch goes by the other two rules. In ordered mode at most one message of a
/// key runs at a time, so that no batch has two of one key.
///
/// # Cancel safety
/// A call that is dropped (a timeout above) leaves a batch that has not gone yet. After that its
/// result is lost, and it alone.
///
/// # Errors
/// A payload that does not decode is the permanent error
/// [`Undecodable`](crate::ErrorKind::Undecodable) of its message, which joins no batch. A panic of
/// the function, or a wrong number of results, is an error of every message of the batch, which is
/// retried like any other; nothing is acknowledged.
///
/// # Panics
/// A call panics outside of a tokio runtime: each batch is a task.
pub fn batch_handler_fn<F, T, Fut, R>(max: usize, wait: Duration, f: F) -> BatchHandlerFn<F, T>
where
    F: Fn(Vec<(T, Message)>) -> Fut + Send + Sync + 'static,
    T: TypedMessage,
    Fut: Future<Output = Vec<R>> + Send + 'static,
    R: IntoOutcome + 'static,
{
    let gathering = Mutex::new(Gathering { open: None, gone: 0 });
    BatchHandlerFn(Arc::new(Shared { f, max, wait, gathering }))
}

/// The handler that [`batch_handler_fn`] makes.
pub struct BatchHandlerFn<F, T>(Arc<Shared<F, T>>);

impl<F, T, Fut, R> Service<Message> for BatchHandlerFn<F, T>
where
    F: Fn(Vec<(T, Message)>) -> Fut + Send + Sync + 'static,
    T: TypedMessage,
    Fut: Future<Output = Vec<R>> + Send + 'static,
    R: IntoOutcome + 'static,
{
    type Response = Outcome;
    type Error = BoxError;
    type Future = BatchHandlerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        BatchHandlerFuture(match caught(|| Ok(T::from_envelope(message.envelope())?)) {
            Ok(typed) => State::Gathered(self.0.gather(typed, message)),
            Err(error) => State::Failed(Some(error)),
        })
    }
}

impl<F, T> Clone for BatchHandlerFn<F, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F, T: TypedMessage> fmt::Debug for BatchHandlerFn<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchHandlerFn")
            .field("type", &T::TYPE)
            .field("max", &self.0.max)
            .field("wait", &self.0.wait)
            .finish_non_exhaustive()
    }
}

/// The future of a [`BatchHandlerFn`].
#[derive(Debug)]
pub struct BatchHandlerFuture(State);

type Answer = Result<Outcome, BoxError>;

#[derive(Debug)]
enum State {
    Gathered(oneshot::Receiver<Answer>),
    Failed(Option<BoxError>),
}

impl Future for BatchHandlerFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Gathered(answer) => Pin::new(answer).poll(cx).map(|answer| {
                answer.unwrap_or_else(|_| Err("the batch ended before it answered".into()))
            }),
            State::Failed(error) => Poll::Ready(Err(error
                .take()
                .unwrap_or_else(|| "a batch's future was polled after its end".into()))),
        }
    }
}

struct Shared<F, T> {
    f: F,
    max: usize,
    wait: Duration,
    gathering: Mutex<Gathering<T>>,
}

struct Gathering<T> {
    /// The batch that new calls join.
    open: Option<Arc<Batch<T>>>,
    /// How many batches take no more calls and have not ended.
    gone: usize,
}

struct Batch<T> {
    /// Locked only while the gathering is, or once the batch is gone.
    calls: Mutex<Vec<Call<T>>>,
    go: Notify,
}

struct Call<T> {
    typed: T,
    message: Message,
    answer: oneshot::Sender<Answer>,
}

impl<F, T, Fut, R> Shared<F, T>
where
    F: Fn(Vec<(T, Message)>) -> Fut + Send + Sync + 'static,
    T: TypedMessage,
    Fut: Future<Output = Vec<R>> + Send + 'static,
    R: IntoOutcome + 'static,
{
    /// Adds a call to the open batch, or opens one.
    fn gather(self: &Arc<Self>, typed: T, message: Message) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let call = Call { typed, message, answer };
        let mut gathering = lock(&self.gathering);
        let (batch, opened) = if let Some(batch) = &gathering.open {
            (Arc::clone(batch), None)
        } else {
            let batch = Arc::new(Batch { calls: Mutex::default(), go: Notify::new() });
            gathering.open = Some(Arc::clone(&batch));
            if gathering.gone == 0 {
                // It still gathers what is called before its task comes to run.
                batch.go.notify_one();
            }
            let task = Task { shared: Arc::clone(self), batch: Arc::clone(&batch) };
            (batch, Some(task))
        };
        let mut calls = lock(&batch.calls);
        calls.push(call);
        if calls.len() >= self.max {
            gathering.close(&batch);
            batch.go.notify_one();
        }
        drop((calls, gathering));
        if let Some(task) = opened {
            // A runtime that shuts down drops the task in here, which locks.
            tokio::spawn(task.run());
        }
        receiver
    }
}

impl<T> Gathering<T> {
    /// Lets no more calls join the batch.
    fn close(&mut self, batch: &Arc<Batch<T>>) {
        if self.open.take_if(|open| Arc::ptr_eq(open, batch)).is_some() {
            self.gone += 1;
        }
    }
}

/// Waits for a batch to go and runs it. The task depends on none of the calls, so that dropping one
/// cannot stop the others.
struct Task<F, T> {
    shared: Arc<Shared<F, T>>,
    batch: Arc<Batch<T>>,
}

impl<F, T, Fut, R> Task<F, T>
where
    F: Fn(Vec<(T, Message)>) -> Fut,
    Fut: Future<Output = Vec<R>>,
    R: IntoOutcome,
{
    async fn run(self) {
        // Either way it is time to go.
        let _ = tokio::time::timeout(self.shared.wait, self.batch.go.notified()).await;
        lock(&self.shared.gathering).close(&self.batch);

        let calls = take(&mut *lock(&self.batch.calls));
        let (messages, answers): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .filter(|call| !call.answer.is_closed())
            .map(|call| ((call.typed, call.message), call.answer))
            .unzip();
        if messages.is_empty() {
            return;
        }
        let expected = messages.len();
        match self.results(messages).await {
            Ok(results) if results.len() == expected => {
                for (answer, result) in answers.into_iter().zip(results) {
                    // Who was dropped meanwhile waits no more.
                    let _ = answer.send(result);
                }
            }
            Ok(results) => fail(
                answers,
                &format!(
                    "the batch handler answered {} results for {expected} messages; it must \
                     answer one for each, in their order",
                    results.len()
                ),
            ),
            Err(error) => fail(answers, &error.to_string()),
        }
    }

    async fn results(&self, messages: Vec<(T, Message)>) -> Result<Vec<Answer>, BoxError> {
        let mut running = pin!(caught(|| Ok((self.shared.f)(messages)))?);
        poll_fn(|cx| {
            poll_caught(running.as_mut(), cx, |results| {
                Ok(results.into_iter().map(IntoOutcome::into_outcome).collect())
            })
        })
        .await
    }
}

/// Also runs when the runtime ends the task: the next batch must not wait for this one.
impl<F, T> Drop for Task<F, T> {
    fn drop(&mut self) {
        let mut gathering = lock(&self.shared.gathering);
        gathering.close(&self.batch);
        gathering.gone -= 1;
        if gathering.gone == 0
            && let Some(open) = &gathering.open
        {
            open.go.notify_one();
        }
    }
}

fn fail(answers: Vec<oneshot::Sender<Answer>>, error: &str) {
    for answer in answers {
        let _ = answer.send(Err(error.into()));
    }
}

/// No code of the application runs under a lock, so that a poisoned one is as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
