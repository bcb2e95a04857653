use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::{Backoff, Error, ErrorKind, Jitter, Result, RetryClass};

/// Runs an operation again after each transient error, with growing pauses, for at most `limit`.
///
/// # Cancel safety
/// That of `run`: it is dropped where the time is over.
///
/// # Errors
/// The last error of `run`; or `Timeout`, where the time ended while it ran.
pub async fn patiently<T, F>(
    limit: Duration,
    operation: &'static str,
    run: impl Fn() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut last = None;
    let again = async {
        let mut failures = 0;
        loop {
            match run().await {
                Err(error) if error.retry_class() == RetryClass::Transient => {
                    tracing::debug!(%error, operation, "trying again");
                    failures += 1;
                    last = Some(error);
                    pause(failures).await;
                    last = None;
                }
                result => return result,
            }
        }
    };
    timeout(limit, again).await.unwrap_or_else(|_| {
        let text = "the broker did not answer within the publish timeout";
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Timeout, text).operation(operation)))
    })
}

/// Waits after so many failures in a row: not at all after none, then around 100 ms, twice as long
/// each time, up to 5 s.
pub async fn pause(failures: u32) {
    if failures > 0 {
        let backoff = Backoff::exponential(Duration::from_millis(100));
        let backoff = backoff.cap(Duration::from_secs(5)).jitter(Jitter::Equal);
        sleep(backoff.delay_seeded(failures, fastrand::u64(..))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn gone() -> Error {
        Error::new(ErrorKind::Unavailable, "gone")
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_now_is_tried_again() {
        let tried = Cell::new(0);
        let run = async || {
            tried.set(tried.get() + 1);
            if tried.get() < 3 { Err(gone()) } else { Ok(tried.get()) }
        };
        assert_eq!(patiently(LIMIT, "test", run).await.expect("the third works"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_good_is_not() {
        let since = Instant::now();
        let denied = async || Err::<(), _>(Error::new(ErrorKind::Denied, "no"));
        let error = patiently(LIMIT, "test", denied).await.expect_err("it is refused");
        assert_eq!((error.kind(), since.elapsed()), (ErrorKind::Denied, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_end_it_says_what_failed_last_or_that_nothing_came() {
        let since = Instant::now();
        let error = patiently(LIMIT, "test", async || Err::<(), _>(gone())).await;
        assert_eq!(error.expect_err("it fails").kind(), ErrorKind::Unavailable);
        assert_eq!(since.elapsed(), LIMIT);

        let error = patiently(LIMIT, "test", std::future::pending::<Result<()>>).await;
        let error = error.expect_err("nothing comes");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.retry_class(), RetryClass::Ambiguous);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_a_limit() {
        for (failures, least, most) in [(0, 0, 0), (1, 50, 150), (4, 400, 1200), (99, 1666, 5000)] {
            let since = Instant::now();
            pause(failures).await;
            let waited = since.elapsed().as_millis();
            assert!((least..=most + 1).contains(&waited), "{failures}: {waited} ms");
        }
    }
}
