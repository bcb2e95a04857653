use anybroker_testkit::brokers::{
    ElasticMq, Error, Kafka, KafkaVersion, RabbitMq, RabbitMqVersion, Redis, RedisVersion, Server,
    Sns,
};
use clap::ValueEnum;

/// What `cargo xtask` calls a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Broker {
    Rabbitmq,
    Redis,
    Kafka,
    /// SNS too
    #[value(alias = "sns")]
    Sqs,
}

impl Broker {
    /// The adapter that works with it.
    pub(crate) fn adapter(self) -> &'static str {
        match self {
            Self::Rabbitmq => "rabbitmq",
            Self::Redis => "redis",
            Self::Kafka => "kafka",
            Self::Sqs => "sqs",
        }
    }
}

/// A server that can be had.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) broker: Broker,
    pub(crate) name: &'static str,
    /// What `--version` takes.
    pub(crate) version: &'static str,
    /// The variables that its URL goes into.
    pub(crate) variables: &'static [&'static str],
    /// Whether it belongs to the tests.
    pub(crate) is_tested: bool,
    /// Takes it from the environment, or starts it.
    pub(crate) find: fn() -> Result<Server, Error>,
}

/// All of them. Those of a broker that share a variable are its versions.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        broker: Broker::Rabbitmq,
        name: "rabbitmq-4.3",
        version: "4.3",
        variables: &["ANYBROKER_RABBITMQ_URL", "ANYBROKER_RABBITMQ_43_URL"],
        is_tested: true,
        find: || RabbitMq::new(RabbitMqVersion::V4_3).find(),
    },
    Kind {
        broker: Broker::Rabbitmq,
        name: "rabbitmq-3.10",
        version: "3.10",
        variables: &["ANYBROKER_RABBITMQ_URL", "ANYBROKER_RABBITMQ_310_URL"],
        is_tested: true,
        find: || RabbitMq::new(RabbitMqVersion::V3_10).find(),
    },
    Kind {
        broker: Broker::Redis,
        name: "redis-8",
        version: "8",
        variables: &["ANYBROKER_REDIS_URL", "ANYBROKER_REDIS_8_URL"],
        is_tested: true,
        find: || Redis::new(RedisVersion::V8).find(),
    },
    Kind {
        broker: Broker::Redis,
        name: "redis-7.0",
        version: "7.0",
        variables: &["ANYBROKER_REDIS_URL", "ANYBROKER_REDIS_70_URL"],
        is_tested: true,
        find: || Redis::new(RedisVersion::V7_0).find(),
    },
    Kind {
        broker: Broker::Redis,
        name: "valkey-9",
        version: "valkey-9",
        variables: &["ANYBROKER_REDIS_URL", "ANYBROKER_VALKEY_9_URL"],
        is_tested: true,
        find: || Redis::new(RedisVersion::Valkey9).find(),
    },
    Kind {
        broker: Broker::Kafka,
        name: "kafka-4.3",
        version: "4.3",
        variables: &["ANYBROKER_KAFKA_URL", "ANYBROKER_KAFKA_43_URL"],
        is_tested: true,
        find: || Kafka::new().find(),
    },
    Kind {
        broker: Broker::Kafka,
        name: "kafka-3.9",
        version: "3.9",
        variables: &["ANYBROKER_KAFKA_URL", "ANYBROKER_KAFKA_39_URL"],
        is_tested: false,
        find: || Kafka::new().version(KafkaVersion::V3_9).find(),
    },
    Kind {
        broker: Broker::Sqs,
        name: "ministack-1.5",
        version: "ministack",
        variables: &["ANYBROKER_SQS_URL", "ANYBROKER_SNS_URL"],
        is_tested: true,
        find: || Sns::new().find(),
    },
    Kind {
        broker: Broker::Sqs,
        name: "elasticmq-1.7",
        version: "elasticmq",
        variables: &["ANYBROKER_ELASTICMQ_URL"],
        is_tested: true,
        find: || ElasticMq::new().find(),
    },
];

/// The servers that are meant by the names of brokers, by none all, in their first version.
pub(crate) fn current(brokers: &[Broker]) -> Vec<&'static Kind> {
    let mut meant = Vec::<&Kind>::new();
    for kind in KINDS {
        let is_named = brokers.is_empty() || brokers.contains(&kind.broker);
        if is_named && meant.iter().all(|one| one.variables[0] != kind.variables[0]) {
            meant.push(kind);
        }
    }
    meant
}

/// The server that is meant by a broker's name and a version.
pub(crate) fn of_version(broker: Broker, version: &str) -> Result<&'static Kind, String> {
    let mut all = KINDS.iter().filter(|kind| kind.broker == broker);
    all.clone().find(|kind| kind.version == version).ok_or_else(|| {
        let first = all.next().map_or_else(String::new, |kind| kind.version.to_owned());
        let known = all.fold(first, |known, kind| known + " or " + kind.version);
        format!("no such version to start: write {known}")
    })
}

#[cfg(test)]
mod tests {
    use super::{Broker, current, of_version};

    #[test]
    fn version_is_the_current_one_unless_given() {
        let names = |brokers| current(brokers).into_iter().map(|kind| kind.name);
        assert!(names(&[Broker::Redis]).eq(["redis-8"]));
        assert!(names(&[Broker::Sqs, Broker::Sqs]).eq(["ministack-1.5", "elasticmq-1.7"]));
        let all = ["rabbitmq-4.3", "redis-8", "kafka-4.3", "ministack-1.5", "elasticmq-1.7"];
        assert!(names(&[]).eq(all));
        let name = |broker, version| of_version(broker, version).map(|kind| kind.name);
        assert_eq!(name(Broker::Redis, "valkey-9"), Ok("valkey-9"));
        let refused = name(Broker::Rabbitmq, "5").unwrap_err();
        assert_eq!(refused, "no such version to start: write 4.3 or 3.10");
    }
}
