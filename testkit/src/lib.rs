//! Tests with and for anybroker: helpers for applications, launchers for real brokers, and the
//! [conformance suite](conformance) for adapters.
//!
//! # Testing an application
//! - [`handle`] runs a handler with its layers on one envelope; no broker is needed.
//! - The memory broker behaves as the others do. A [`Recorder`] around it, or around any other,
//!   notes what the code under test publishes.
//! - [`Log`] keeps what the process logs, for tests of what an operator reads.
//! - [`history`] writes down what processes did that are killed meanwhile, and finds what was lost,
//!   reordered or handled twice; a [`Child`] is such a process.
//! - Under tokio's paused clock (feature `test-util` of tokio), hours pass at once: the memory
//!   broker, the worker and the layers take their time from it. [`until_handled`] waits until a
//!   group has nothing left to handle.
//!
#![cfg_attr(feature = "messages", doc = include_str!("../docs/virtual-time.md"))]

pub mod brokers;
#[cfg(feature = "messages")]
mod child;
#[cfg(feature = "messages")]
pub mod conformance;
#[cfg(feature = "messages")]
mod handling;
#[cfg(feature = "messages")]
pub mod history;
#[cfg(feature = "interchange")]
pub mod interchange;
#[cfg(feature = "messages")]
mod log;
#[cfg(feature = "messages")]
mod proxy;
#[cfg(feature = "messages")]
mod recorder;

#[cfg(feature = "messages")]
pub use child::Child;
#[cfg(feature = "messages")]
pub use handling::{handle, handle_attempt, until_handled};
#[cfg(feature = "messages")]
pub use log::Log;
#[cfg(feature = "messages")]
pub use proxy::Proxy;
#[cfg(feature = "messages")]
pub use recorder::Recorder;
