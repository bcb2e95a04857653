use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tower::retry::budget::Budget;
use tower::{Layer, Service};

use super::backoff::seed;
use crate::mark::{self, Mark};
use crate::{Backoff, BoxError, Envelope, Message, Outcome, RetryClass};

/// Turns errors into `Ok(Retry { after })` while attempts remain.
///
/// - A transient or ambiguous error: retried after the [`Backoff`]'s wait; on the last attempt
///   passed on, marked as exhausted, which the [`DeadLetterLayer`](crate::DeadLetterLayer) or the
///   worker dead-letters.
/// - A permanent error (see [`permanent`](crate::permanent)): passed on at once.
/// - An overload (see [`overloaded`](crate::overloaded)): it becomes `Ok(Release { after })` of about
///   a second, whatever the attempt, since it is no failure of the message.
/// - `Ok(Retry { after })` of the handler's own: passed on as it is while attempts remain; on the
///   last attempt it becomes an exhausted error as well, so that no handler retries for ever.
/// - Any other `Ok`: passed on.
///
/// Attempts are [`Message::attempt`]s: they survive restarts and moves between processes. The
/// layer itself does not wait: the worker and the broker do, with the concurrency slot free.
///
/// # Defaults
/// 5 attempts, no budget.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use anybroker_core::*;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let handler = ServiceBuilder::new()
///     .layer(RetryLayer::new(Backoff::exponential(Duration::from_secs(1))).max_attempts(3))
///     .service(service_fn(|_: Message| async { Err::<Outcome, BoxError>("no answer".into()) }));
///
/// let envelope = Arc::new(Envelope::new("order.created", "{}"));
/// let subscription = Arc::new(Subscription::topic("order.created").group("email"));
/// let second = Message::new(envelope.clone(), subscription.clone(), 2);
/// let outcome = handler.clone().oneshot(second).await?;
/// assert_eq!(outcome, Outcome::Retry { after: Duration::from_secs(2) });
///
/// let last = Message::new(envelope, subscription, 3);
/// let error = handler.oneshot(last).await.unwrap_err();
/// assert_eq!(retry_class(&error), RetryClass::Permanent);
/// # Ok::<(), BoxError>(()) })?;
/// # Ok::<(), BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RetryLayer(Policy);

/// The service of a [`RetryLayer`].
#[derive(Clone, Debug)]
pub struct RetryService<S> {
    inner: S,
    policy: Policy,
}

#[derive(Clone)]
struct Policy {
    backoff: Backoff,
    max_attempts: u32,
    budget: Option<Arc<dyn Budget + Send + Sync>>,
}

impl RetryLayer {
    /// Retries with these waits.
    pub fn new(backoff: Backoff) -> Self {
        Self(Policy { backoff, max_attempts: 5, budget: None })
    }

    /// Sets how many attempts a message has, the first included; 5 unless set, at least 1. A
    /// [`max_deliveries`](crate::Subscription::max_deliveries) that the subscription states and
    /// that is less counts instead; one that it does not state follows the layer.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.0.max_attempts = max_attempts.max(1);
        self
    }

    /// Holds retries back while more fail than the budget allows, so that a dependency in trouble
    /// is not hit harder than in good times.
    ///
    /// Each `Ack` pays into the budget, each retry of an error draws on it. When it is used up a
    /// retry still happens, but as late as the [cap](Backoff::cap) says: a budget neither loses
    /// nor dead-letters a message. All clones of the layer share it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use anybroker_core::{Backoff, RetryLayer, TpsBudget};
    /// // Over ten seconds: 10 retries each second, and one more for every fifth success.
    /// let budget = TpsBudget::new(Duration::from_secs(10), 10, 0.2);
    /// RetryLayer::new(Backoff::exponential(Duration::from_secs(1))).budget(budget);
    /// ```
    pub fn budget(mut self, budget: impl Budget + Send + Sync + 'static) -> Self {
        self.0.budget = Some(Arc::new(budget));
        self
    }
}

impl Policy {
    fn on_outcome(&self, outcome: Outcome, attempt: u32, last: u32) -> Result<Outcome, BoxError> {
        match outcome {
            Outcome::Retry { .. } if attempt >= last => Err(mark::exhausted(
                format!(
                    "the handler asked for a retry, but attempt {attempt} of {last} was its last"
                )
                .into(),
            )),
            Outcome::Ack => {
                if let Some(budget) = &self.budget {
                    budget.deposit();
                }
                Ok(outcome)
            }
            _ => Ok(outcome),
        }
    }

    fn on_error(
        &self,
        error: BoxError,
        attempt: u32,
        last: u32,
        seed: u64,
        whose: Option<&Envelope>,
    ) -> Result<Outcome, BoxError> {
        match mark::find(&error) {
            Some(Mark::Overloaded) => {
                let error = &*error as &dyn StdError;
                tracing::debug!(attempt, error, "an overload gives the message back");
                return Ok(mark::released());
            }
            // A retry layer further in has given up already, or nothing is to be gained.
            Some(Mark::Exhausted | Mark::Permanent | Mark::Class(RetryClass::Permanent)) => {
                return Err(error);
            }
            Some(Mark::Class(_)) | None => {}
        }
        if attempt >= last {
            return Err(mark::exhausted(error));
        }
        let within_budget = self.budget.as_ref().is_none_or(|budget| budget.withdraw());
        let after = if within_budget {
            self.backoff.delay_seeded(attempt, seed)
        } else {
            self.backoff.longest()
        };
        say_retry(whose, attempt, after, &*error);
        Ok(Outcome::Retry { after })
    }
}

/// Says which message is tried again, after how long, and why.
pub(crate) fn say_retry(
    whose: Option<&Envelope>,
    attempt: u32,
    after: Duration,
    error: &(dyn StdError + 'static),
) {
    let (id, r#type) = whose.map(|envelope| (&*envelope.id, &*envelope.r#type)).unzip();
    tracing::debug!(id, r#type, attempt, ?after, error, "a message is tried again");
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("backoff", &self.backoff)
            .field("max_attempts", &self.max_attempts)
            .field("budget", &self.budget.is_some())
            .finish()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { inner, policy: self.0.clone() }
    }
}

impl<S> Service<Message> for RetryService<S>
where
    S: Service<Message, Response = Outcome, Error: Into<BoxError>>,
{
    type Response = Outcome;
    type Error = BoxError;
    type Future = RetryFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        RetryFuture {
            attempt: message.attempt(),
            last: message.subscription().last_attempt(self.policy.max_attempts),
            seed: seed(&message.envelope().id),
            // Kept only to be named in the log: it costs each message otherwise.
            whose: tracing::enabled!(tracing::Level::DEBUG).then(|| message.clone()),
            policy: self.policy.clone(),
            inner: self.inner.call(message),
        }
    }
}

pin_project! {
    /// The future of a [`RetryService`].
    #[derive(Debug)]
    pub struct RetryFuture<F> {
        #[pin]
        inner: F,
        policy: Policy,
        attempt: u32,
        last: u32,
        seed: u64,
        whose: Option<Message>,
    }
}

impl<F, E> Future for RetryFuture<F>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Outcome, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.inner.poll(cx)) {
            Ok(outcome) => this.policy.on_outcome(outcome, *this.attempt, *this.last),
            Err(error) => this.policy.on_error(
                error.into(),
                *this.attempt,
                *this.last,
                *this.seed,
                this.whose.as_ref().map(Message::envelope),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::middleware::tests::message;
    use crate::{Error, ErrorKind, TpsBudget, permanent, retry_class};

    async fn answer(
        layer: &RetryLayer,
        attempt: u32,
        inner: impl FnOnce() -> Result<Outcome, BoxError> + Clone + Send,
    ) -> Result<Outcome, BoxError> {
        let handler = layer.layer(service_fn(move |_: Message| {
            let answer = inner.clone()();
            async move { answer }
        }));
        handler.oneshot(message("1", "{}", attempt)).await
    }

    fn layer() -> RetryLayer {
        RetryLayer::new(Backoff::exponential(Duration::from_secs(1)))
    }

    fn retry(after: u64) -> Outcome {
        Outcome::Retry { after: Duration::from_secs(after) }
    }

    #[tokio::test]
    async fn errors_are_retried_until_the_last_attempt() {
        let fail = || Err("no answer".into());
        for (attempt, after) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8)] {
            assert_eq!(answer(&layer(), attempt, fail).await.unwrap(), retry(after));
        }
        for attempt in [5, 6, u32::MAX] {
            let error = answer(&layer(), attempt, fail).await.unwrap_err();
            assert_eq!(mark::find(&error), Some(Mark::Exhausted));
            assert_eq!(error.to_string(), "no answer");
        }
        let error = answer(&layer().max_attempts(0), 1, fail).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Exhausted), "the first attempt is the last");
    }

    #[tokio::test]
    async fn a_stated_limit_of_the_subscription_has_the_last_error_too() {
        let limited = |limit| {
            let subscription = crate::Subscription::queue("q").max_deliveries(limit);
            let envelope = Arc::new(crate::Envelope::new("t", "{}"));
            Message::new(envelope, Arc::new(subscription), 3)
        };
        let handler = layer()
            .layer(service_fn(|_: Message| async { Err::<Outcome, BoxError>("no answer".into()) }));
        let error = handler.clone().oneshot(limited(3)).await.unwrap_err();
        assert_eq!((mark::find(&error), &*error.to_string()), (Some(Mark::Exhausted), "no answer"));
        assert_eq!(handler.oneshot(limited(4)).await.unwrap(), retry(4));
    }

    #[tokio::test]
    async fn permanent_errors_pass_at_once_and_unmarked() {
        let error = answer(&layer(), 1, || Err(permanent("bad order"))).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Permanent));

        let undecodable = || Err(Error::new(ErrorKind::Undecodable, "no JSON").into());
        let error = answer(&layer(), 9, undecodable).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Class(RetryClass::Permanent)));
    }

    #[tokio::test]
    async fn ambiguous_errors_are_retried() {
        let ambiguous = || Err(Error::new(ErrorKind::Timeout, "no confirmation in time").into());
        assert_eq!(answer(&layer(), 1, ambiguous).await.unwrap(), retry(1));
    }

    #[tokio::test]
    async fn an_overload_is_released_on_the_last_attempt_too() {
        for attempt in [1, 5, 9] {
            let shed = || Err(tower::load_shed::error::Overloaded::new().into());
            let open = || Err(crate::overloaded("the breaker is open"));
            for outcome in
                [answer(&layer(), attempt, shed).await, answer(&layer(), attempt, open).await]
            {
                let Ok(Outcome::Release { after }) = outcome else { panic!("{outcome:?}") };
                assert!(after >= Duration::from_millis(500) && after < Duration::from_millis(1500));
            }
        }
    }

    #[tokio::test]
    async fn outer_layer_does_not_retry_what_an_inner_one_gave_up() {
        let inner = layer().max_attempts(1);
        let handler = layer().layer(inner.layer(service_fn(|_: Message| async {
            Err::<Outcome, BoxError>("no answer".into())
        })));
        let error = handler.oneshot(message("1", "{}", 1)).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Exhausted));
        assert_eq!(retry_class(&error), RetryClass::Permanent);
    }

    #[tokio::test]
    async fn outcomes_pass_but_a_handler_cannot_retry_for_ever() {
        for outcome in [
            Outcome::Ack,
            Outcome::dead_letter("closed", "the shop is closed"),
            Outcome::Release { after: Duration::ZERO },
        ] {
            let passed = answer(&layer(), 7, || Ok(outcome.clone())).await.unwrap();
            assert_eq!(passed, outcome);
        }
        assert_eq!(answer(&layer(), 4, || Ok(retry(99))).await.unwrap(), retry(99));
        let error = answer(&layer(), 5, || Ok(retry(99))).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Exhausted));
        assert_eq!(
            error.to_string(),
            "the handler asked for a retry, but attempt 5 of 5 was its last"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn used_up_budget_makes_retries_late_and_nothing_else() {
        let budget = TpsBudget::new(Duration::from_secs(10), 0, 1.0);
        let layer = layer().budget(budget).clone();
        let fail = || Err("no answer".into());

        assert_eq!(answer(&layer, 1, || Ok(Outcome::Ack)).await.unwrap(), Outcome::Ack);
        assert_eq!(answer(&layer, 1, fail).await.unwrap(), retry(1), "paid for");
        assert_eq!(answer(&layer, 1, fail).await.unwrap(), retry(300), "at the cap");
        let error = answer(&layer, 5, fail).await.unwrap_err();
        assert_eq!(mark::find(&error), Some(Mark::Exhausted), "attempts count, not the budget");
    }
}
