use std::io;
use std::sync::{Mutex, Once, PoisonError};

use tracing_subscriber::filter::LevelFilter;

/// What this process logs, for tests of what an operator reads.
///
/// All tests of a process share it: tell the lines of one apart by a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct Log(());

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Keeps what is logged from now on, at DEBUG and above.
    ///
    /// # Panics
    /// If the process logs elsewhere already.
    pub fn keep() -> Self {
        static START: Once = Once::new();
        START.call_once(|| {
            let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG);
            subscriber.with_ansi(false).with_writer(|| Lines).init();
        });
        Self(())
    }

    /// The lines that hold each of these parts.
    pub fn lines(self, parts: &[&str]) -> Vec<String> {
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = String::from_utf8_lossy(&lines);
        let holds = |line: &&str| parts.iter().all(|part| line.contains(part));
        lines.lines().filter(holds).map(str::to_owned).collect()
    }
}
