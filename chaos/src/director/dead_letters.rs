use std::collections::HashSet;
use std::time::Duration;

use anybroker::{BoxError, DeadLetterFilter, Redrive};
use anybroker_testkit::history::Event;
use tokio::time::{Instant, sleep};

use super::stage::Stage;
use crate::scenario::Part;

/// How long it may take to see all of them where a look shows a sample.
const PATIENCE: Duration = Duration::from_mins(1);
const MOST: usize = 100_000;

/// Notes what is in the dead-letter queues, once nobody consumes any more, and says what is left
/// elsewhere: a message that was not handled may be lost, or only stuck.
pub(super) async fn note(stage: &Stage, parts: &[Part]) -> Result<(), BoxError> {
    let broker = stage.connect().await?;
    for subscription in parts.iter().flat_map(|part| part.subscriptions()) {
        let end = Instant::now() + PATIENCE;
        let depth = broker.depth(&subscription).await?;
        let left = [depth.ready, depth.in_flight, depth.delayed].into_iter().flatten().sum::<u64>();
        if left > 0 {
            eprintln!("{} is not empty: {depth:?}", subscription.group_name());
        }
        // Those of one message that was given up twice differ by the ids of their copies.
        let mut known = HashSet::new();
        loop {
            let depth = broker.depth(&subscription).await?;
            let peek = broker.dead_letters(&subscription, &DeadLetterFilter::all(), MOST).await?;
            let mut seen = HashSet::new();
            for letter in peek.entries {
                let id = letter.envelope.id.clone();
                seen.insert(id.clone());
                if known.insert((id.clone(), letter.hop.id.clone())) {
                    let failure = letter.failure();
                    stage.note(&Event::DeadLettered {
                        id,
                        group: subscription.group_name().to_owned(),
                        reason: failure.map_or("", |failure| &failure.reason).to_owned(),
                        text: format!(
                            "after {} attempts: {}",
                            letter.hop.attempts,
                            failure.map_or("", |failure| &failure.error)
                        ),
                    })?;
                }
            }
            let is_complete = peek.complete || depth.dead_lettered == Some(0);
            if is_complete || Instant::now() > end {
                break;
            }
            if seen.is_empty() {
                sleep(Duration::from_millis(500)).await;
            } else {
                // A sample shows those behind them only when they are away.
                let seen = DeadLetterFilter::all().ids(seen);
                broker.redrive(&subscription, &Redrive::all().filter(seen)).await?;
            }
        }
    }
    broker.close().await?;
    Ok(())
}
