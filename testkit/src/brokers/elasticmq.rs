use super::packages::{Jars, Programs};
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Error, Server, find, query};

const VERSION: &str = "1.7.1";

/// `ElasticMQ`, which stands in for SQS and keeps to its limits; to find or to start. It knows no SNS.
#[derive(Debug, Clone, Default)]
pub struct ElasticMq {
    is_persistent: bool,
}

impl ElasticMq {
    /// A server that keeps everything in memory: [`Server::restart`] empties it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the messages that it confirmed over a [`Server::restart`], and is slower for it. A queue
    /// is kept once it has held a message.
    pub fn persistent(mut self) -> Self {
        self.is_persistent = true;
        self
    }

    /// Uses the server that the environment names, and starts one of its own where it names none.
    ///
    /// # Errors
    /// With the commands that help, where no server can be had; for a server in the environment that
    /// does not answer; with the log of a server that does not start.
    pub fn find(&self) -> Result<Server, Error> {
        find::find(self)
    }

    /// Starts a server of its own, whatever the environment names.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn launch(&self) -> Result<Server, Error> {
        find::launch(self)
    }
}

const SCRIPT: &str = r#"
mkdir -p "$DATA"
exec java -Xmx512m -XX:TieredStopAtLevel=1 "-Dconfig.file=$CONFIG" -cp "$PROGRAMS/*" \
    org.elasticmq.server.Main
"#;

impl Recipe for ElasticMq {
    fn name(&self) -> &'static str {
        "ElasticMQ 1.7"
    }

    fn variables(&self) -> &'static [&'static str] {
        &["ANYBROKER_ELASTICMQ_URL"]
    }

    fn example_url(&self) -> &'static str {
        "sqs+http://127.0.0.1:9324"
    }

    fn accepts(&self, _: &str) -> bool {
        true
    }

    fn probe(&self, url: &str) -> Result<String, Error> {
        query::probe(url, "ListQueues")
    }

    fn url(&self, site: &Site) -> String {
        format!("sqs+http://127.0.0.1:{}", site.port())
    }

    fn tls_url(&self, _: &Site) -> Option<String> {
        None
    }

    fn configure(&self, site: &Site) -> Result<(), Error> {
        let (listen, port, data) = (site.listen, site.port(), site.data());
        let (is_persistent, data) = (self.is_persistent, data.display());
        // A receive that waits takes a connection, and of those it would serve 1,024: the others
        // would wait until one ends. H2 would wait half a second before it writes.
        let config = format!(
            r#"include classpath("application.conf")
pekko.http.server {{ max-connections = 16384, backlog = 4096 }}
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "{listen}", sqs-limits = strict }}
rest-stats {{ enabled = false }}
queues-storage {{ enabled = {is_persistent}, path = "{data}/queues.conf" }}
messages-storage {{ enabled = {is_persistent}, uri = "jdbc:h2:{data}/messages;WRITE_DELAY=0" }}
"#
        );
        site.write("elasticmq.conf", &config).map(drop)
    }

    fn image(&self, site: &Site) -> Image {
        let mut environment = self.script(site).environment;
        // Where the image keeps its libraries.
        environment.push(("PROGRAMS", "/opt/docker/lib".to_owned()));
        Image::new("ANYBROKER_ELASTICMQ_IMAGE", "softwaremill/elasticmq", VERSION, environment)
            .script(SCRIPT)
    }

    fn install(&self) -> Result<Programs, Error> {
        Jars {
            name: format!("elasticmq-{VERSION}"),
            artifacts: vec![format!("org.elasticmq:elasticmq-server_2.13:{VERSION}")],
        }
        .install()
    }

    fn script(&self, site: &Site) -> Script {
        let environment = vec![
            ("DATA", site.data().display().to_string()),
            ("CONFIG", site.folder.join("elasticmq.conf").display().to_string()),
        ];
        Script { environment, text: SCRIPT }
    }
}
