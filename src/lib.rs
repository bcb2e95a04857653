//! anybroker

#[doc(hidden)]
pub use anybroker_core::__derive;
#[cfg(feature = "json")]
pub use anybroker_core::Json;
pub use anybroker_core::{
    BatchHandlerFn, BatchHandlerFuture, BoxError, Broker, BrokerUrl, Capabilities, Codec, Command,
    Confirmation, Confirmer, Consumer, DeadLetter, DeadLetterFilter, Declare, Delivery, Depth,
    Destination, Envelope, Error, ErrorKind, Event, Expired, Failure, Handler, HandlerFn,
    HandlerFuture, Headers, Hop, Inbox, InboxSender, IntoOutcome, Message, Outcome, Outgoing, Peek,
    Producer, Queue, Reason, Redrive, Result, RetryClass, Router, RouterFuture, SettlementProof,
    Settler, Start, Subscription, Topic, TypedMessage, Unknown, batch_handler_fn, handler_fn, now,
    permanent, retry_class,
};
#[cfg(feature = "macros")]
pub use anybroker_macros::{Command, Event};
