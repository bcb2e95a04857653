//! What processes did, written down so that it survives them, and judged afterwards.
//!
//! A test that kills processes cannot ask them what they did. So each of them, publisher or
//! consumer, [writes](Writer) a ledger of its own while it works: before each step what it is about
//! to do, and after it what came of it. The process that kills the others writes one too, about
//! what it did to them and when. All ledgers lie in one folder, a file each, and share one clock.
//!
//! In the end a [`Reader`] reads them, a [`History`] puts them together, and a [`Checker`] finds
//! what is [wrong](Wrong): what was lost, reordered, handled twice at once, given up without a
//! cause. `cargo xtask chaos` is built on this.
//!
//! ```
//! use std::time::Duration;
//! use anybroker_testkit::history::{Checker, Event, Fate, History, Reader, Writer, Wrong};
//!
//! let folder = std::env::temp_dir().join(format!("history-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let publisher = Writer::open(&folder, "publisher-1")?;
//! let (id, to) = ("m1".to_owned(), "orders".to_owned());
//! publisher.note(&Event::Sending { id, to, key: None, delay: 0, fate: Fate::Handled })?;
//! publisher.note(&Event::Confirmed { id: "m1".to_owned() })?;
//!
//! let history = History::new(Reader::new(&folder).news()?);
//! let checker = Checker::new(Duration::from_secs(10)).group("orders", "orders", false);
//! let findings = checker.check(&history);
//! assert_eq!(findings.violations[0].wrong, Wrong::Lost, "no process handled it");
//! print!("{}", history.about("m1"));
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod check;
mod index;
mod ledger;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod write;

pub use self::check::{Checker, Counts, Findings, Violation, Wrong};
pub use self::index::{DIRECTOR, History};
pub(crate) use self::ledger::Ledger;
pub use self::read::Reader;
pub use self::record::{Event, Fate, Gone, Harm, Record, RunEnd};
pub use self::write::{Writer, now};
