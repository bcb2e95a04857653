//! Real servers to test against, found or started.
//!
//! A server is looked for in this order, and the first that answers is used:
//!
//! 1. **A URL in the environment**, such as `ANYBROKER_RABBITMQ_URL`. It must answer; it is never
//!    stopped, killed or restarted from here.
//! 2. **A container**, where a Docker engine answers and the feature `containers` is on.
//! 3. **Processes from packages**, which are installed into a cached folder of their own: RabbitMQ,
//!    Redis and Valkey from Debian, by root; Kafka and `ElasticMQ` from Maven; `MiniStack` from `PyPI`. The
//!    machine itself gets what installs and runs them (`debootstrap`, Java and Maven, Python's
//!    `venv`), by apt, if it has not got it.
//!
//! Where none of them works, the [`Error`] names the commands that help.
//!
//! Everything started here listens on free ports of the loopback interface, keeps its data in a
//! temporary folder, and is gone once its [`Server`] is dropped or the program that started it ends,
//! by whatever cause.
//!
//! ```no_run
//! use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion};
//!
//! let server = RabbitMq::new(RabbitMqVersion::V4_3).find()?;
//! println!("RabbitMQ {} answers on {}", server.version(), server.url());
//! # Ok::<(), anybroker_testkit::brokers::Error>(())
//! ```

mod address;
mod amqp;
mod backing;
mod certificates;
mod container;
mod detached;
mod elasticmq;
mod error;
mod find;
mod kafka;
mod kafka_protocol;
pub(crate) mod packages;
mod process;
mod query;
mod rabbitmq;
mod reaper;
mod recipe;
mod redis;
mod resp;
mod server;
mod site;
mod sns;
#[cfg(test)]
mod tests;

pub use self::certificates::ClientCertificate;
pub use self::container::docker_answers;
pub use self::detached::Detached;
pub use self::elasticmq::ElasticMq;
pub use self::error::Error;
pub use self::kafka::{Kafka, KafkaVersion};
pub use self::packages::cache_folder;
pub use self::rabbitmq::{RabbitMq, RabbitMqVersion};
pub use self::redis::{Redis, RedisVersion};
pub use self::server::{Server, Tls};
pub use self::sns::Sns;
