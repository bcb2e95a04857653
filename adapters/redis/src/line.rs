use std::time::Duration;

use anybroker_core::{ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{error_of, failed};
use crate::link::{ANSWER_TIMEOUT, Link, connect};

/// A connection of one consumer's own, for reads that block.
pub(crate) struct Line {
    connection: MultiplexedConnection,
    /// By which another connection can end a read; 0 where the server does not tell.
    id: u64,
}

/// How long ending a read early may take; most reads end sooner by themselves.
const UNBLOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// What a read answered.
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// Whether it was ended before its time.
    pub(crate) woken: bool,
}

impl Line {
    pub(crate) async fn open(clients: &[Client]) -> Result<Self> {
        let mut connection = connect(clients).await?;
        let id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await.unwrap_or(0);
        Ok(Self { connection, id })
    }

    /// Reads for `wait` at most; ends early when woken or closed. It always waits for the answer:
    /// what was delivered with an answer that nobody reads would be pending unseen.
    pub(crate) async fn read(
        &mut self,
        command: &Cmd,
        wait: Duration,
        link: &Link,
        wake: &Notify,
        closed: impl Future<Output = ()>,
    ) -> Result<Answer> {
        // A peer that is silent for longer is gone.
        let end = Instant::now() + wait + ANSWER_TIMEOUT;
        let mut answer = std::pin::pin!(command.query_async(&mut self.connection));
        let mut closed = std::pin::pin!(closed);
        let mut woken = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    let value = answer.map_err(|error| failed("consume", "reading", error))?;
                    return Ok(Answer { value, woken });
                }
                () = wake.notified(), if !woken => {}
                () = &mut closed, if !woken => {}
                () = sleep_until(end) => {
                    let text = "the server did not answer a read in time";
                    return Err(error_of(ErrorKind::Unavailable, "consume", text));
                }
            }
            woken = true;
            // Where this fails, the read ends by itself.
            let mut unblock = redis::cmd("CLIENT");
            unblock.arg("UNBLOCK").arg(self.id);
            let unblocked =
                timeout(UNBLOCK_TIMEOUT, link.query::<Value>("consume", &unblock)).await;
            tracing::trace!(?unblocked, "ended a read early");
        }
    }
}
