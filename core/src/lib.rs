//! The broker-independent part of anybroker: what travels, how it is handed over and settled,
//! and what the library does around a handler. No broker is named in this crate.
//!
//! Applications use the facade crate `anybroker`; adapters depend on this one.

mod backoff_tmp;
mod broker;
mod capabilities;
mod clock;
pub mod cloudevents;
mod confirmation;
mod dead_letters;
mod delivery;
mod destination;
mod envelope;
mod error;
mod headers;
mod hop;
mod inbox;
mod mark;
mod message;
mod name;
mod outcome;
mod publisher;
mod shutdown;
mod subscription;
mod typed;
mod url;
mod worker;

pub use backoff_tmp::{Backoff, Jitter};
pub use broker::{Broker, Consumer, Outgoing, Producer};
pub use capabilities::{Capabilities, Depth, SettlementProof};
pub use clock::now;
pub use confirmation::{Confirmation, Confirmer};
pub use dead_letters::{DeadLetter, DeadLetterFilter, Peek, Redrive};
pub use delivery::{Delivery, Settler};
pub use destination::{Destination, Queue, Topic};
pub use envelope::Envelope;
pub use error::{BoxError, Error, ErrorKind, Result, RetryClass};
pub use headers::Headers;
pub use hop::{Failure, Hop};
pub use inbox::{Inbox, InboxSender};
pub use mark::{permanent, retry_class};
pub use message::Message;
pub use outcome::{Outcome, Reason};
pub use publisher::{Publish, Publisher};
pub use shutdown::shutdown_signal;
pub use subscription::{Expired, Start, Subscription};
pub use typed::{Command, Event, TypedMessage};
pub use url::{BrokerUrl, Declare};
pub use worker::{Report, RunningWorker, Worker};
