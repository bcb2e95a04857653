use std::sync::Arc;

use anybroker_core::{Broker, BrokerUrl, Error, ErrorKind, Result};

/// Connects to the broker that the URL's scheme names.
///
/// | scheme | broker | feature |
/// |---|---|---|
/// | `memory` | in this process | `memory` (default) |
/// | `amqp`, `amqps` | RabbitMQ | `rabbitmq` |
/// | `kafka`, `kafka+ssl` | Apache Kafka | `kafka` |
/// | `redis`, `rediss`, `valkey`, `valkeys` | Redis, Valkey | `redis` |
/// | `sqs`, `sqs+http` | SQS and SNS | `sqs` |
///
/// Options stand in the query string; each adapter's builder documents them. It tries once;
/// `connect=wait` keeps trying, where the adapter has a server to wait for.
///
/// # Errors
/// `Config` for a URL, an option or a scheme that is not understood, or whose feature is off;
/// `Unavailable` and `Denied` when the server does not answer or refuses.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> anybroker::Result<()> {
/// # #[cfg(feature = "memory")] {
/// let broker = anybroker::connect("memory://").await?;
/// broker.health().await?;
/// # }
/// let error = anybroker::connect("carrier-pigeon://coop").await.unwrap_err();
/// assert!(error.to_string().contains("memory"), "it names the schemes that there are");
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Arc<dyn Broker>> {
    let url: BrokerUrl = url.parse()?;
    match url.scheme() {
        #[cfg(feature = "memory")]
        "memory" => Ok(anybroker_memory::connect(url).await?),
        #[cfg(not(feature = "memory"))]
        "memory" => Err(feature_is_off(&url, "memory")),
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => Ok(anybroker_rabbitmq::connect(url).await?),
        #[cfg(not(feature = "rabbitmq"))]
        "amqp" | "amqps" => Err(feature_is_off(&url, "rabbitmq")),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+ssl" => Ok(anybroker_kafka::connect(url).await?),
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafka+ssl" => Err(feature_is_off(&url, "kafka")),
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "valkey" | "valkeys" => Ok(anybroker_redis::connect(url).await?),
        #[cfg(not(feature = "redis"))]
        "redis" | "rediss" | "valkey" | "valkeys" => Err(feature_is_off(&url, "redis")),
        #[cfg(feature = "sqs")]
        "sqs" | "sqs+http" => Ok(anybroker_sqs::connect(url).await?),
        #[cfg(not(feature = "sqs"))]
        "sqs" | "sqs+http" => Err(feature_is_off(&url, "sqs")),
        other => Err(config(format!(
            "no broker is known by the scheme {other:?}: write memory://, amqp://, kafka://, redis:// or sqs://"
        ))),
    }
}

#[cfg(not(all(
    feature = "memory",
    feature = "rabbitmq",
    feature = "kafka",
    feature = "redis",
    feature = "sqs"
)))]
fn feature_is_off(url: &BrokerUrl, feature: &str) -> Error {
    config(format!(
        "the scheme {:?} needs the feature {feature:?}, which is off: run `cargo add anybroker --features {feature}`",
        url.scheme()
    ))
}

fn config(text: String) -> Error {
    Error::new(ErrorKind::Config, text).operation("connect")
}
