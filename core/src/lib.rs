//! The broker-independent part of anybroker: what travels, how it is handed over and settled,
//! and what the library does around a handler. No broker is named in this crate.
//!
//! Applications use the facade crate `anybroker`; adapters depend on this one.

pub mod adapter;
mod batch;
mod broker;
mod capabilities;
mod cause;
mod clock;
pub mod cloudevents;
mod codec;
mod confirmation;
mod dead_letters;
mod delivery;
mod destination;
mod envelope;
mod error;
mod handler;
mod handles;
mod headers;
mod hop;
mod inbox;
mod mark;
mod message;
mod middleware;
mod name;
mod outcome;
mod publisher;
mod router;
mod shutdown;
mod subscription;
mod typed;
mod url;
mod worker;

// What the derives expand to, and nothing else: no part of the public interface.
#[doc(hidden)]
#[path = "derive.rs"]
pub mod __derive;

pub use batch::{BatchHandlerFn, BatchHandlerFuture, batch_handler_fn};
pub use broker::{Broker, Consumer, Outgoing, Producer};
pub use capabilities::{Capabilities, Depth, SettlementProof};
pub use clock::now;
pub use codec::Codec;
#[cfg(feature = "json")]
pub use codec::Json;
pub use confirmation::{Confirmation, Confirmer};
pub use dead_letters::{DeadLetter, DeadLetterFilter, Peek, Redrive};
pub use delivery::{Delivery, Settler};
pub use destination::{Destination, Queue, Topic};
pub use envelope::Envelope;
pub use error::{BoxError, Error, ErrorKind, Result, RetryClass};
pub use handler::{Handler, HandlerFn, HandlerFuture, IntoOutcome, handler_fn};
pub use handles::HandlerOf;
pub use headers::Headers;
pub use hop::{Failure, Hop};
pub use inbox::{Inbox, InboxSender};
pub use mark::{overloaded, permanent, retry_class};
pub use message::Message;
pub use middleware::{
    Backoff, Begin, Claim, DeadLetterFuture, DeadLetterLayer, DeadLetterService, IdempotencyFuture,
    IdempotencyKey, IdempotencyLayer, IdempotencyService, IdempotencyStore, Jitter,
    MemoryIdempotencyStore, RetryFuture, RetryLayer, RetryService, StoreFuture, TimeoutLayer,
    TpsBudget,
};
pub use outcome::{Outcome, Reason};
pub use publisher::{Publish, Publisher};
pub use router::{Router, RouterFuture, Unknown};
pub use shutdown::shutdown_signal;
pub use subscription::{Expired, Start, Subscription};
pub use typed::{Command, Event, TypedMessage};
pub use url::{BrokerUrl, Declare};
pub use worker::{Report, RunningWorker, Worker};
