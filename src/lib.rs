//! Publish and handle messages the same way on every broker.
#[cfg(test)]
mod tests {}

use std::sync::Arc;

pub use anybroker_core::*;
#[cfg(feature = "macros")]
pub use anybroker_macros::*;
