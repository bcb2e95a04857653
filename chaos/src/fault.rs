use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;

/// What can go wrong.
///
/// The comments are what `--help` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// All faults below that lose no data, drawn by the seed, two at a time
    Mix,
    /// Nothing goes wrong: what is found then is wrong by itself
    None,
    /// Kills the broker (-9), and starts it again with its data
    KillBroker,
    /// Kills the broker, and starts it again without its data; what was confirmed before is excused
    WipeBroker,
    /// Stops the broker (SIGSTOP): connections stay open, and nothing answers
    StopBroker,
    /// Cuts connections, of one process or of all, one to three times in a row
    Cut,
    /// Swallows what is sent on connections, then passes it on late or cuts them
    BlackHole,
    /// Lets requests through, swallows their answers, and cuts
    LostAnswers,
    /// Holds everything on its way, up to 300 ms in each direction (Kafka, RabbitMQ: 100 ms); explains nothing
    Latency,
    /// Kills a consumer's process (-9), and starts another
    KillConsumer,
    /// Stops a consumer's process (SIGSTOP), past its lease and session or for less
    StopConsumer,
    /// Tells a consumer to end, as a deployment does, and starts another; explains nothing
    DrainConsumer,
    /// Kills a publisher's process (-9), and starts another
    KillPublisher,
    /// Stops a publisher's process (SIGSTOP), past its publish timeout or for less
    StopPublisher,
    /// Runs a publisher whose clock is up to an hour wrong (libfaketime); explains nothing
    Clock,
}

/// What a fault is done to. Two faults of one place exclude each other; a fault of each may happen
/// at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The broker, and the way to it.
    Broker,
    /// The processes.
    Processes,
}

/// Longer than every timeout of the scenario: publish, lease and session.
const LONG: std::ops::Range<u64> = 9_000..13_000;
const SHORT: std::ops::Range<u64> = 200..2_000;

impl Fault {
    /// Where it is done; nowhere for `None`, everywhere for `Mix`.
    pub(crate) fn place(self) -> Option<Place> {
        match self {
            Self::Mix | Self::None => None,
            Self::KillBroker
            | Self::WipeBroker
            | Self::StopBroker
            | Self::Cut
            | Self::BlackHole
            | Self::LostAnswers
            | Self::Latency => Some(Place::Broker),
            Self::KillConsumer
            | Self::StopConsumer
            | Self::DrainConsumer
            | Self::KillPublisher
            | Self::StopPublisher
            | Self::Clock => Some(Place::Processes),
        }
    }

    /// How long it lasts: half of the times shorter than the timeouts, half of them longer.
    pub(crate) fn hold(self, rng: &mut Rng) -> Duration {
        let long = rng.bool();
        let millis = match self {
            // Done at once.
            Self::Mix | Self::None | Self::Cut | Self::DrainConsumer => 0,
            Self::Latency | Self::Clock => rng.u64(4_000..8_000),
            _ if long => rng.u64(LONG),
            _ => rng.u64(SHORT),
        };
        Duration::from_millis(millis)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // None of the values is skipped, so that each has a name.
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("fault", |value| value.get_name()))
    }
}
