use std::time::Duration;

use anybroker::BoxError;
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{
    ElasticMq, Kafka, KafkaVersion, RabbitMq, RabbitMqVersion, Redis, RedisVersion, Server, Sns,
};
use anybroker_testkit::history::Checker;
use clap::ValueEnum;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use crate::clock;
use crate::fault::Fault;
use crate::scenario::{LEASE, PUBLISH_TIMEOUT, Part, SESSION};

/// What is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Broker {
    /// Redis Streams: 8, 7.0, or valkey-9
    Redis,
    /// RabbitMQ: 4.3 or 3.10
    Rabbitmq,
    /// Apache Kafka: 4.3 or 3.9; faults of the network meet all processes at once
    Kafka,
    /// SQS, without topics on elasticmq; with them on ministack, which keeps nothing when killed
    Sqs,
    /// All four, two at a time, each in its first version
    All,
}

/// A server of its own, and the ways to it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    /// Where it is reached undisturbed, but by Kafka's clients.
    pub(crate) url: String,
    pub(crate) server: Server,
    broker: Broker,
    /// The longest latency, in each direction, with which nothing may fail.
    pub(crate) latency: Duration,
    /// The only way there is, where the server tells its clients where to connect.
    shared: Option<Proxy>,
    options: String,
}

impl Broker {
    pub(crate) fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["8", "7.0", "valkey-9"],
            Self::Rabbitmq => &["4.3", "3.10"],
            Self::Kafka => &["4.3", "3.9"],
            Self::Sqs => &["elasticmq", "ministack"],
            Self::All => &[],
        }
    }

    /// What its stand-in has; ElasticMQ knows no topics.
    pub(crate) fn parts(version: &str) -> Vec<Part> {
        match version {
            "elasticmq" => vec![Part::Queue, Part::Ordered],
            _ => Part::value_variants().to_vec(),
        }
    }

    /// What cannot be done to it while these parts are played.
    pub(crate) fn impossible(self, version: &str, parts: &[Part]) -> Vec<(Fault, &'static str)> {
        let mut impossible = Vec::new();
        if version == "elasticmq" && parts.contains(&Part::Ordered) {
            let why = "after a restart it hands out what follows a message of the same key that is \
                       still held; with --only queue it can be killed";
            impossible.push((Fault::KillBroker, why));
        }
        if version == "ministack" {
            impossible.push((Fault::KillBroker, "it keeps its data in memory"));
        }
        if self == Self::Kafka {
            let why = "its client waits by the same clock, and would not find its server";
            impossible.push((Fault::Clock, why));
        } else if !clock::is_shiftable() {
            impossible.push((Fault::Clock, clock::MISSING));
        }
        impossible
    }

    /// How many messages a second each publisher sends. A small machine has to have time for them
    /// beside everything else, since what it answers late counts as a violation.
    pub(crate) fn rate(self) -> u32 {
        if self == Self::Sqs { 15 } else { 40 }
    }

    pub(crate) async fn launch(self, version: &'static str) -> Result<Site, BoxError> {
        // Known before the server, which tells its clients where to connect.
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let server = spawn_blocking(move || match (self, version) {
            (Self::Redis, "8") => Redis::new(RedisVersion::V8).launch(),
            (Self::Redis, "7.0") => Redis::new(RedisVersion::V7_0).launch(),
            (Self::Redis, _) => Redis::new(RedisVersion::Valkey9).launch(),
            (Self::Rabbitmq, "4.3") => rabbitmq(RabbitMqVersion::V4_3).launch(),
            (Self::Rabbitmq, _) => rabbitmq(RabbitMqVersion::V3_10).launch(),
            (Self::Kafka, "4.3") => Kafka::new().advertise(port).launch(),
            (Self::Kafka, _) => Kafka::new().version(KafkaVersion::V3_9).advertise(port).launch(),
            (_, "ministack") => Sns::new().launch(),
            _ => ElasticMq::new().persistent().launch(),
        });
        let server = server.await??;
        let url = server.url().to_owned();
        let shared = match self {
            Self::Kafka => Some(Proxy::on(listener, &url)?),
            _ => None,
        };
        let millis = Duration::as_millis;
        let own = match (self, version) {
            (Self::Kafka, _) => format!("&session-timeout={}ms", millis(&SESSION)),
            (Self::Sqs, "elasticmq") => "&poll=1s&sns=off".to_owned(),
            (Self::Sqs, _) => "&poll=1s".to_owned(),
            _ => String::new(),
        };
        let options = format!("?connect=wait{own}");
        // Kafka's client has five requests on their way at once, and needs one for each partition:
        // with the ten of the scenario a publish takes as long as some of them in turn. A process of
        // RabbitMQ that connects and declares asks some twenty times in turn, and may publish only
        // then: with twice 300 ms for each, that is three times the publish timeout.
        let latency = if matches!(self, Self::Kafka | Self::Rabbitmq) { 100 } else { 300 };
        Ok(Site {
            name: format!("{self:?} {version}").to_lowercase(),
            url,
            server,
            broker: self,
            latency: Duration::from_millis(latency),
            shared,
            options,
        })
    }
}

/// A server that tries again after seconds what it could not move out of a delay queue, as when it
/// has just started: after three minutes, its own time, nobody would wait for the message.
fn rabbitmq(version: RabbitMqVersion) -> RabbitMq {
    RabbitMq::new(version).advanced("{dead_letter_worker_publisher_confirm_timeout, 5000}")
}

impl Site {
    /// The way of a process to the server, and the URL that it has to connect to.
    pub(crate) async fn way(&self) -> Result<(Option<Proxy>, String), BoxError> {
        if let Some(shared) = &self.shared {
            return Ok((None, self.hasty(shared.url())));
        }
        let proxy = Proxy::start(&self.url).await?;
        let url = self.hasty(proxy.url());
        Ok((Some(proxy), url))
    }

    /// Outages are to be longer than this timeout. Whoever declares and looks has the default, as a
    /// slow machine needs it.
    fn hasty(&self, url: &str) -> String {
        format!("{}&publish-timeout={}ms", self.with_options(url), PUBLISH_TIMEOUT.as_millis())
    }

    /// Lets a checker judge attempts as the broker counts them, of so many processes; see
    /// docs/brokers.md.
    pub(crate) fn counted(&self, checker: Checker, processes: usize) -> Checker {
        match self.broker {
            // A process has one consumer of each group without order.
            Broker::Rabbitmq => checker.counts_each_of(processes),
            Broker::Sqs => checker.counts_by_process().counts_each_lease(LEASE),
            _ => checker,
        }
    }

    pub(crate) fn shared(&self) -> Option<&Proxy> {
        self.shared.as_ref()
    }

    pub(crate) fn with_options(&self, url: &str) -> String {
        format!("{url}{}", self.options)
    }
}
