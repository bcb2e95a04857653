use std::fmt::Write as _;
use std::fs;

use super::certificates::Certificates;
use super::packages::{Jars, Programs};
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Error, Server, find, kafka_protocol};

/// Which Apache Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaVersion {
    /// 3.9, the last that knows `ZooKeeper`; run here without.
    V3_9,
    /// 4.3 or later, the current one.
    V4_3,
}

/// An Apache Kafka broker to find or to start: one process that is its own controller.
#[derive(Debug, Clone)]
pub struct Kafka {
    version: KafkaVersion,
    user: Option<(String, String)>,
    has_tls: bool,
    advertised: Option<u16>,
    config: String,
}

impl Kafka {
    /// A broker of version 4.3 without users or TLS.
    pub fn new() -> Self {
        Self {
            version: KafkaVersion::V4_3,
            user: None,
            has_tls: false,
            advertised: None,
            config: String::new(),
        }
    }

    /// Another version.
    pub fn version(mut self, version: KafkaVersion) -> Self {
        self.version = version;
        self
    }

    /// Clients have to log in, by PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or OAUTHBEARER with an unsigned
    /// token. Name and password are of letters and digits.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// A second listener that speaks TLS, with a certificate for `localhost` and `127.0.0.1`:
    /// [`Server::tls`] has its URL and the authority to trust.
    pub fn tls(mut self) -> Self {
        self.has_tls = true;
        self
    }

    /// Sends clients to another port of 127.0.0.1 than its own, a proxy's, say. [`Server::url`] is
    /// the way that avoids it, for the first connection of each client only.
    pub fn advertise(mut self, port: u16) -> Self {
        self.advertised = Some(port);
        self
    }

    /// A line for `server.properties`, such as `message.max.bytes=100000`. It counts more than what
    /// is set by default.
    pub fn config(mut self, line: &str) -> Self {
        self.config.push_str(line);
        self.config.push('\n');
        self
    }

    /// Uses the broker that the environment names, and starts one of its own where it names none.
    ///
    /// User, TLS and configuration are only for the latter: a test that needs them calls
    /// [`launch`](Self::launch).
    ///
    /// # Errors
    /// With the commands that help, where no server can be had; for a server in the environment that
    /// does not answer; with the log of a server that does not start.
    pub fn find(&self) -> Result<Server, Error> {
        find::find(self)
    }

    /// Starts a broker of its own, whatever the environment names.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn launch(&self) -> Result<Server, Error> {
        find::launch(self)
    }

    fn secured(&self, scheme: &str, port: u16) -> String {
        match &self.user {
            Some((user, password)) => format!("{scheme}://{user}:{password}@127.0.0.1:{port}"),
            None => format!("{scheme}://127.0.0.1:{port}"),
        }
    }

    fn environment(&self, site: &Site) -> Vec<(&'static str, String)> {
        let login = self.user.as_ref().map_or_else(String::new, |(user, password)| {
            format!("name={user},password={password}")
        });
        vec![
            ("DATA", site.data().display().to_string()),
            ("CONFIG", site.folder.join("server.properties").display().to_string()),
            ("LOGGING", site.folder.join("log4j.properties").display().to_string()),
            ("LOGIN", login),
        ]
    }

    /// How clients log in, for the listeners of this name.
    fn logins(&self, listener: &str) -> String {
        let Some((user, password)) = &self.user else { return String::new() };
        let modules = "org.apache.kafka.common.security";
        let mut logins = format!(
            "listener.name.{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
             listener.name.{listener}.plain.sasl.jaas.config=\
             {modules}.plain.PlainLoginModule required user_{user}=\"{password}\";\n\
             listener.name.{listener}.oauthbearer.sasl.jaas.config=\
             {modules}.oauthbearer.OAuthBearerLoginModule required;\n"
        );
        for bits in ["256", "512"] {
            let _ = writeln!(
                logins,
                "listener.name.{listener}.scram-sha-{bits}.sasl.jaas.config=\
                 {modules}.scram.ScramLoginModule required;"
            );
        }
        logins
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self::new()
    }
}

const TLS_PORT: usize = 1;
const CONTROLLER_PORT: usize = 2;
/// The broker talks to itself there, without a login.
const INTERNAL_PORT: usize = 3;

const PROPERTIES: &str = "process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
log.segment.delete.delay.ms=1000
";

/// Log4j 1, which 3.9 brings with it. 4.3 has Log4j 2, which is told the level alone.
const LOGGING: &str = "log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=[%d] %p %m (%c)%n
";

/// The id of the cluster is any number of 16 bytes, as Base64.
const SCRIPT: &str = r#"
kafka() {
    main=$1
    shift
    exec java -Xmx512m -XX:TieredStopAtLevel=1 -Dorg.apache.logging.log4j.level=INFO \
        "-Dlog4j.configuration=file:$LOGGING" -cp "$PROGRAMS/*" "$main" "$@"
}
if ! [ -e "$DATA/meta.properties" ]; then
    set -- format --config "$CONFIG" --cluster-id QW55YnJva2VyVGVzdHMhIQ
    if [ -n "$LOGIN" ]; then
        set -- "$@" --add-scram "SCRAM-SHA-256=[$LOGIN]" --add-scram "SCRAM-SHA-512=[$LOGIN]"
    fi
    (kafka kafka.tools.StorageTool "$@") || exit
fi
kafka kafka.Kafka "$CONFIG"
"#;

impl Recipe for Kafka {
    fn name(&self) -> &'static str {
        match self.version {
            KafkaVersion::V3_9 => "Kafka 3.9",
            KafkaVersion::V4_3 => "Kafka 4.3",
        }
    }

    fn variables(&self) -> &'static [&'static str] {
        match self.version {
            KafkaVersion::V3_9 => &["ANYBROKER_KAFKA_39_URL", "ANYBROKER_KAFKA_URL"],
            KafkaVersion::V4_3 => &["ANYBROKER_KAFKA_43_URL", "ANYBROKER_KAFKA_URL"],
        }
    }

    fn example_url(&self) -> &'static str {
        "kafka://127.0.0.1:9092"
    }

    fn accepts(&self, version: &str) -> bool {
        match self.version {
            KafkaVersion::V3_9 => version == "3.9",
            KafkaVersion::V4_3 => version == "4.3" || version.starts_with("newer "),
        }
    }

    fn probe(&self, url: &str) -> Result<String, Error> {
        kafka_protocol::probe(url)
    }

    fn url(&self, site: &Site) -> String {
        self.secured("kafka", site.port())
    }

    fn tls_url(&self, site: &Site) -> Option<String> {
        self.has_tls.then(|| self.secured("kafka+ssl", site.ports[TLS_PORT]))
    }

    fn configure(&self, site: &Site) -> Result<(), Error> {
        let (listen, port) = (site.listen, site.port());
        let (tls, controller) = (site.ports[TLS_PORT], site.ports[CONTROLLER_PORT]);
        let internal = format!("INTERNAL://127.0.0.1:{}", site.ports[INTERNAL_PORT]);
        let mut listeners =
            format!("CLIENT://{listen}:{port},CONTROLLER://127.0.0.1:{controller},{internal}");
        let mut advertised =
            format!("CLIENT://127.0.0.1:{},{internal}", self.advertised.unwrap_or(port));
        let client = if self.user.is_some() { "SASL_PLAINTEXT" } else { "PLAINTEXT" };
        let mut protocols = format!("CLIENT:{client},CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT");
        let mut config = self.logins("client");
        if self.has_tls {
            let files = Certificates::make(site)?;
            let chain = [&files.key, &files.certificate].map(fs::read_to_string);
            let [Ok(key), Ok(certificate)] = chain else {
                return Err(Error::new("the certificate that was just made cannot be read"));
            };
            let keys = site.write("keys.pem", &(key + &certificate))?;
            let _ = write!(listeners, ",TLS://{listen}:{tls}");
            let _ = write!(advertised, ",TLS://127.0.0.1:{tls}");
            protocols.push_str(if self.user.is_some() { ",TLS:SASL_SSL" } else { ",TLS:SSL" });
            let _ = write!(
                config,
                "listener.name.tls.ssl.keystore.type=PEM\n\
                 listener.name.tls.ssl.keystore.location={}\n\
                 listener.name.tls.ssl.truststore.type=PEM\n\
                 listener.name.tls.ssl.truststore.location={}\n",
                keys.display(),
                files.authority.display()
            );
            config.push_str(&self.logins("tls"));
        }
        let properties = format!(
            "{PROPERTIES}listeners={listeners}\nadvertised.listeners={advertised}\n\
             listener.security.protocol.map={protocols}\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={}\n{config}{}",
            site.data().display(),
            self.config,
        );
        site.write("log4j.properties", LOGGING)?;
        site.write("server.properties", &properties).map(drop)
    }

    fn image(&self, site: &Site) -> Image {
        let (variable, tag) = match self.version {
            KafkaVersion::V3_9 => ("ANYBROKER_KAFKA_39_IMAGE", "3.9.1"),
            KafkaVersion::V4_3 => ("ANYBROKER_KAFKA_43_IMAGE", "4.3.1"),
        };
        let mut environment = self.environment(site);
        environment.push(("PROGRAMS", "/opt/kafka/libs".to_owned()));
        Image::new(variable, "apache/kafka", tag, environment).script(SCRIPT)
    }

    fn install(&self) -> Result<Programs, Error> {
        let (version, logging) = match self.version {
            KafkaVersion::V3_9 => ("3.9.1", None),
            KafkaVersion::V4_3 => {
                ("4.3.1", Some("org.apache.logging.log4j:log4j-slf4j-impl:2.25.3"))
            }
        };
        let mut artifacts = vec![
            format!("org.apache.kafka:kafka_2.13:{version}"),
            format!("org.apache.kafka:kafka-tools:{version}"),
        ];
        artifacts.extend(logging.map(str::to_owned));
        Jars { name: format!("kafka-{version}"), artifacts }.install()
    }

    fn script(&self, site: &Site) -> Script {
        Script { environment: self.environment(site), text: SCRIPT }
    }
}
