use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Event;
use super::ledger::Ledger;

/// How the file of a process's ledger ends.
pub(super) const EXTENSION: &str = "ledger";

/// Writes down what a process does. Each note outlives the process as soon as it was made.
#[derive(Debug)]
pub struct Writer(Ledger);

impl Writer {
    /// Begins the ledger of a process, in the folder of the history.
    ///
    /// # Errors
    /// Those of the file.
    pub fn open(folder: &Path, process: &str) -> io::Result<Self> {
        Ok(Self(Ledger::open(&folder.join(process).with_added_extension(EXTENSION))?))
    }

    /// Notes that something happens now.
    ///
    /// # Errors
    /// Those of the file.
    pub fn note(&self, event: &Event) -> io::Result<()> {
        let line = format!("{} {}", now().as_micros(), serde_json::to_string(event)?);
        self.0.append([&*line])
    }
}

/// How often the stalls of the machine are looked for, and how long the least of them takes.
const LOOK: Duration = Duration::from_millis(100);
const STALL: Duration = Duration::from_secs(1);

impl Writer {
    /// Notes, in a thread of its own and for as long as the writer lives, when the machine lets the
    /// process stand still. On a busy machine timeouts run out that nobody is to blame for.
    pub fn note_stalls(self: &Arc<Self>) {
        let writer = Arc::downgrade(self);
        std::thread::spawn(move || {
            let mut before = now();
            while Weak::strong_count(&writer) > 0 {
                sleep(LOOK);
                let late = now().saturating_sub(before + LOOK);
                before = now();
                if let Some(writer) = writer.upgrade().filter(|_| late > STALL) {
                    let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                    // Where a note fails, the next one of the process says so.
                    let _ = writer.note(&Event::Stalled { millis });
                }
            }
        });
    }
}

/// Since the machine started. The clock is the kernel's own for all processes: nobody sets it, and
/// what shifts the clock of a process does not reach it.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}
