//! What launched servers can be put through, against the real ones.

mod kafka;
mod rabbitmq;
mod redis;
mod sqs;
