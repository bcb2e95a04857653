#![doc = include_str!("../README.md")]

mod connect;

pub use connect::connect;

// What travels.
pub use anybroker_core::{Envelope, Headers};
// What users write: messages with a schema, and handlers.
#[cfg(feature = "json")]
pub use anybroker_core::Json;
#[doc(no_inline)]
pub use anybroker_core::{Codec, Command, Event, TypedMessage};
pub use anybroker_core::{
    Handler, HandlerOf, IntoOutcome, Message, Outcome, Reason, Router, Unknown, batch_handler_fn,
    handler_fn, overloaded, permanent,
};
#[cfg(feature = "macros")]
pub use anybroker_macros::{Command, Event};
// What stands around a handler.
pub use anybroker_core::{
    Backoff, DeadLetterLayer, IdempotencyLayer, Jitter, MemoryIdempotencyStore, RetryLayer,
    TimeoutLayer, TpsBudget,
};
pub use tower::ServiceBuilder;
// Where messages go and come from.
pub use anybroker_core::{
    Confirmation, Destination, Expired, Outgoing, Publish, Publisher, Queue, Report, RunningWorker,
    Start, Subscription, Topic, Worker, shutdown_signal,
};
// Brokers, their errors and their dead letters.
/// The crate `anybroker-core`, which an adapter for another broker is written against.
pub use anybroker_core as adapter;
pub use anybroker_core::{BoxError, Error, ErrorKind, Result, RetryClass, retry_class};
pub use anybroker_core::{
    Broker, Capabilities, DeadLetter, DeadLetterFilter, Depth, Failure, Peek, Redrive,
    SettlementProof,
};
#[cfg(feature = "kafka")]
pub use anybroker_kafka as kafka;
#[cfg(feature = "memory")]
pub use anybroker_memory as memory;
#[cfg(feature = "rabbitmq")]
pub use anybroker_rabbitmq as rabbitmq;
#[cfg(feature = "redis")]
pub use anybroker_redis as redis;
#[cfg(feature = "sqs")]
pub use anybroker_sqs as sqs;
// For the expansion of the derives alone.
#[doc(hidden)]
pub use anybroker_core::__derive;
