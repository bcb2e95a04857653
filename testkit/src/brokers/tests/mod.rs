//! What launched servers can be put through, against the real ones.

mod rabbitmq;
mod redis;
