//! Questions to the cluster, which block while it answers.

use std::time::{Duration, Instant};

use anybroker_core::{ErrorKind, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::task::spawn_blocking;

use crate::cluster::Cluster;
use crate::error::{code, error_of};

/// How long a question may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// Asks again while the broker has yet to learn of what was just created.
pub(crate) fn patiently<T>(
    cluster: &Cluster,
    ask: impl Fn() -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    let end = Instant::now() + ANSWER;
    loop {
        match ask() {
            Err(error)
                if Instant::now() < end
                    && !cluster.has_ended()
                    && matches!(
                        code(&error),
                        Some(
                            RDKafkaErrorCode::UnknownTopicOrPartition
                                | RDKafkaErrorCode::UnknownPartition
                                | RDKafkaErrorCode::LeaderNotAvailable
                                | RDKafkaErrorCode::NotLeaderForPartition
                                | RDKafkaErrorCode::NotCoordinator
                                | RDKafkaErrorCode::CoordinatorNotAvailable
                                | RDKafkaErrorCode::CoordinatorLoadInProgress
                                | RDKafkaErrorCode::WaitingForCoordinator
                                | RDKafkaErrorCode::BrokerTransportFailure
                                | RDKafkaErrorCode::UnstableOffsetCommit
                        )
                    ) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Runs what blocks beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| {
        let text = "the runtime ended before the broker answered";
        Err(error_of(ErrorKind::Closed, "wait", text).with_source(error))
    })
}
