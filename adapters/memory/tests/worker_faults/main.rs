//! What the worker does when something around it fails: services that panic or stall, brokers that
//! refuse, consumers that end, handlers that hog.

mod chaos;
mod double;
mod drain;
mod failures;
mod fairness;
mod intake;
mod silence;
mod threads;
