use std::sync::Arc;
use std::time::Duration;

use anybroker::{BoxError, Broker, Confirmation, Envelope, Outgoing, RetryClass};
use anybroker_testkit::history::{Event, Writer};
use fastrand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{close, text_of};
use crate::scenario::{Part, Task};

/// Bursts each second.
const BURSTS: u32 = 10;
/// Keys of an order, for each publisher.
const KEYS: u8 = 6;
/// How many publishes may wait for their answers.
const OPEN: usize = 4_000;

/// What a publisher has to do.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) name: &'a str,
    pub(super) parts: &'a [Part],
    pub(super) seed: u64,
    pub(super) per_second: u32,
}

pub(super) async fn run(
    broker: &dyn Broker,
    load: &Load<'_>,
    notes: &Arc<Writer>,
    end: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let producer = broker.producer();
    let mut rng = Rng::with_seed(load.seed);
    let mut bursts = interval(Duration::from_secs(1) / BURSTS);
    // After a stop, not all that was missed at once.
    bursts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answers = JoinSet::new();
    let mut number = 0_u64;
    while !*end.borrow() {
        bursts.tick().await;
        let burst = if answers.len() < OPEN { rng.u32(..=2 * load.per_second / BURSTS) } else { 0 };
        for _ in 0..burst {
            let part = load.parts[rng.usize(..load.parts.len())];
            let (task, delay) = Task::draw(part, &mut rng);
            let id = format!("{}-{}-{number}", task.word(), load.name);
            number += 1;
            let outgoing = outgoing(part, load.name, &id, delay, &mut rng);
            notes.note(&Event::Sending {
                id: id.clone(),
                to: outgoing.destination.name().to_owned(),
                key: outgoing.envelope.key.clone(),
                delay: u64::try_from(delay.as_millis())?,
                fate: task.fate(),
            })?;
            answers.spawn(note_answer(producer.send(outgoing), id, notes.clone()));
        }
        while let Some(noted) = answers.try_join_next() {
            noted??;
        }
    }
    // The close that follows has to send what waits.
    let closing = close(broker, notes);
    let answered = async {
        while let Some(noted) = answers.join_next().await {
            noted??;
        }
        Ok::<_, BoxError>(())
    };
    let (closed, answered) = tokio::join!(closing, answered);
    closed?;
    answered
}

fn outgoing(part: Part, name: &str, id: &str, delay: Duration, rng: &mut Rng) -> Outgoing {
    // Sizes differ, so that batches end at different messages.
    let payload = vec![b'x'; rng.usize(10..2_000)];
    let mut envelope = Envelope::new("chaos.message", payload).with_id(id);
    envelope.content_type = "text/plain".into();
    if part == Part::Ordered {
        envelope.key = Some(format!("{name}-{}", rng.u8(..KEYS)));
    }
    let outgoing = Outgoing::new(part.destination(), envelope);
    if delay.is_zero() { outgoing } else { outgoing.with_delay(delay) }
}

async fn note_answer(sent: Confirmation, id: String, notes: Arc<Writer>) -> std::io::Result<()> {
    let event = match sent.await {
        Ok(()) => Event::Confirmed { id },
        Err(error) => {
            let class = match error.retry_class() {
                RetryClass::Transient => "transient",
                RetryClass::Ambiguous => "ambiguous",
                RetryClass::Permanent => "permanent",
            };
            Event::Refused { id, class: class.to_owned(), error: text_of(&error) }
        }
    };
    notes.note(&event)
}
