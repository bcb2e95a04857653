//! Checks that a broker's adapter keeps the contracts of `anybroker-core`.
//!
//! An adapter runs every case from one file. `Cargo.toml` of the adapter:
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! `tests/conformance.rs`:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use anybroker_testkit::conformance::{self, Target};
//! # async fn connect() -> anybroker_core::Result<std::sync::Arc<dyn anybroker_core::Broker>> { todo!() }
//!
//! fn main() -> ExitCode {
//!     conformance::main([Target::new("mybroker", connect)])
//! }
//! ```
//!
//! Each case shows by name (`mybroker::acknowledged_delivery_stays_away`) and takes the arguments
//! of `cargo test`. A case that the broker's [`Capabilities`](anybroker_core::Capabilities) rule
//! out is reported as ignored, with the reason, and its mirror runs instead: it proves that the
//! library then says so.
//!
//! Some cases start the test's own program once more, as a consumer or a publisher that they kill
//! with -9: the broker must be reached in the same way from there. (So connect to a server that
//! the environment names, rather than start one in the test.)
//!
//! Cases use names of their own and run side by side. Each ends within its deadline, a minute for
//! most, and fails with the step it stood at. With `ANYBROKER_TEST_RESULTS` set to a file, each
//! result is appended to it as a line of JSON with `suite`, `case`, `outcome` and `reason`.

mod case;
mod cases;
mod child;
mod lab;
mod process;
mod receiver;
mod results;
mod run;
mod target;
mod worked;

pub use run::main;
pub use target::Target;
