//! Tower layers around a handler: pure decisions, made from what the message and the handler's
//! answer say. None waits, clones the payload or touches the broker.

mod backoff;
pub(crate) mod dead_letter;
mod idempotency;
mod idempotency_future;
mod idempotency_key;
mod idempotency_memory;
mod idempotency_store;
#[cfg(test)]
mod idempotency_tests;
pub(crate) mod retry;
#[cfg(test)]
mod tests;

pub use backoff::{Backoff, Jitter};
pub use dead_letter::{DeadLetterFuture, DeadLetterLayer, DeadLetterService};
pub use idempotency::{IdempotencyLayer, IdempotencyService};
pub use idempotency_future::IdempotencyFuture;
pub use idempotency_key::IdempotencyKey;
pub use idempotency_memory::MemoryIdempotencyStore;
pub use idempotency_store::{Begin, Claim, IdempotencyStore, StoreFuture};
pub use retry::{RetryFuture, RetryLayer, RetryService};
pub use tower::retry::budget::TpsBudget;
pub use tower::timeout::TimeoutLayer;
