use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::certificates::Certificates;
use super::packages::{BOOKWORM, FORKY, Package, Programs};
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Error, Server, amqp, find};

/// Which RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RabbitMqVersion {
    /// 3.10, the oldest that is supported; in Debian 12.
    V3_10,
    /// 4.3 or a later 4, the current one; in Debian testing.
    V4_3,
}

/// A RabbitMQ server to find or to start.
#[derive(Debug, Clone)]
pub struct RabbitMq {
    version: RabbitMqVersion,
    user: String,
    password: String,
    has_tls: bool,
    config: String,
    advanced: Vec<String>,
}

impl RabbitMq {
    /// A server with user `guest`, without TLS.
    pub fn new(version: RabbitMqVersion) -> Self {
        Self {
            version,
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            has_tls: false,
            config: String::new(),
            advanced: Vec::new(),
        }
    }

    /// Another user than `guest`, with all rights.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        name.clone_into(&mut self.user);
        password.clone_into(&mut self.password);
        self
    }

    /// A second listener that speaks TLS, with a certificate for `localhost` and `127.0.0.1`:
    /// [`Server::tls`] has its URL and the authority to trust.
    pub fn tls(mut self) -> Self {
        self.has_tls = true;
        self
    }

    /// A line for `rabbitmq.conf`, such as `consumer_timeout = 10000`.
    pub fn config(mut self, line: &str) -> Self {
        self.config.push_str(line);
        self.config.push('\n');
        self
    }

    /// What only `advanced.config` can say of the application `rabbit`, an Erlang term such as
    /// `{dead_letter_worker_publisher_confirm_timeout, 5000}`.
    pub fn advanced(mut self, term: &str) -> Self {
        self.advanced.push(term.to_owned());
        self
    }

    /// Uses the server that the environment names, and starts one of its own where it names none.
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

    /// Starts a server of its own, whatever the environment names.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn launch(&self) -> Result<Server, Error> {
        find::launch(self)
    }

    fn secured(&self, scheme: &str, port: u16) -> String {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (user, password) = (encode(&self.user), encode(&self.password));
        format!("{scheme}://{user}:{password}@127.0.0.1:{port}")
    }
}

const TLS_PORT: usize = 1;
const DISTRIBUTION_PORT: usize = 2;
const EPMD_PORT: usize = 3;

/// Erlang's port mapper daemonizes when RabbitMQ starts it, and would stay behind. Started here, on
/// a port of its own, it is part of the group. `rabbitmq-server` in `/usr/sbin` would drop the
/// environment.
const SCRIPT: &str = "
epmd &
tries=0
until epmd -names >/dev/null 2>&1 || [ $tries -ge 100 ]; do tries=$((tries + 1)); sleep 0.05; done
exec rabbitmq-server
";

impl Recipe for RabbitMq {
    fn name(&self) -> &'static str {
        match self.version {
            RabbitMqVersion::V3_10 => "RabbitMQ 3.10",
            RabbitMqVersion::V4_3 => "RabbitMQ 4.3",
        }
    }

    fn variables(&self) -> &'static [&'static str] {
        match self.version {
            RabbitMqVersion::V3_10 => &["ANYBROKER_RABBITMQ_310_URL", "ANYBROKER_RABBITMQ_URL"],
            RabbitMqVersion::V4_3 => &["ANYBROKER_RABBITMQ_43_URL", "ANYBROKER_RABBITMQ_URL"],
        }
    }

    fn example_url(&self) -> &'static str {
        "amqp://guest:guest@127.0.0.1:5672"
    }

    fn accepts(&self, version: &str) -> bool {
        accepts(self.version, version)
    }

    fn probe(&self, url: &str) -> Result<String, Error> {
        amqp::probe(url)
    }

    fn url(&self, site: &Site) -> String {
        self.secured("amqp", site.port())
    }

    fn tls_url(&self, site: &Site) -> Option<String> {
        self.has_tls.then(|| self.secured("amqps", site.ports[TLS_PORT]))
    }

    fn configure(&self, site: &Site) -> Result<(), Error> {
        let mut config = format!(
            "listeners.tcp.1 = {}:{}\nloopback_users = none\ndefault_user = {}\ndefault_pass = {}\n",
            site.listen,
            site.port(),
            self.user,
            self.password,
        );
        if self.has_tls {
            let files = Certificates::make(site)?;
            let _ = write!(
                config,
                "listeners.ssl.1 = {}:{}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
                site.listen,
                site.ports[TLS_PORT],
                files.authority.display(),
                files.certificate.display(),
                files.key.display(),
            );
        }
        config.push_str(&self.config);
        site.write("rabbitmq.conf", &config)?;
        site.write("advanced.config", &format!("[{{rabbit, [{}]}}].\n", self.advanced.join(", ")))?;
        site.write("enabled_plugins", "[].\n").map(drop)
    }

    fn image(&self, site: &Site) -> Image {
        let tag = match self.version {
            RabbitMqVersion::V3_10 => "3.10",
            RabbitMqVersion::V4_3 => "4.3",
        };
        Image::new("ANYBROKER_RABBITMQ_IMAGE", "rabbitmq", tag, environment(site))
    }

    fn install(&self) -> Result<Programs, Error> {
        Package {
            name: "rabbitmq-server",
            program: "usr/lib/rabbitmq/bin/rabbitmq-server",
            suite: match self.version {
                RabbitMqVersion::V3_10 => BOOKWORM,
                RabbitMqVersion::V4_3 => FORKY,
            },
            accepts: match self.version {
                RabbitMqVersion::V3_10 => |version| accepts(RabbitMqVersion::V3_10, version),
                RabbitMqVersion::V4_3 => |version| accepts(RabbitMqVersion::V4_3, version),
            },
        }
        .install()
    }

    fn script(&self, site: &Site) -> Script {
        let path = |name| site.folder.join(name).display().to_string();
        let mut environment = environment(site);
        environment.extend([
            (
                "PATH",
                "/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ),
            // The cookie by which rabbitmqctl is let in: this server's, not this user's.
            ("HOME", site.folder.display().to_string()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_DIST_PORT", site.ports[DISTRIBUTION_PORT].to_string()),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
            ),
            ("ERL_EPMD_PORT", site.ports[EPMD_PORT].to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ]);
        Script { environment, text: SCRIPT }
    }
}

/// What a container needs as well: there, the image sets the rest.
fn environment(site: &Site) -> Vec<(&'static str, String)> {
    let file = |name: &str| site.folder.join(name).display().to_string();
    vec![
        ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
        ("RABBITMQ_NODENAME", format!("anybroker-{}@localhost", site.port())),
    ]
}

fn accepts(wanted: RabbitMqVersion, stated: &str) -> bool {
    let mut numbers = stated.split('.').map_while(|number| number.parse::<u32>().ok());
    match (wanted, numbers.next(), numbers.next()) {
        (RabbitMqVersion::V3_10, Some(3), Some(10)) => true,
        (RabbitMqVersion::V4_3, Some(4), Some(minor)) => minor >= 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{RabbitMqVersion, accepts};

    #[test]
    fn current_version_may_be_newer_and_old_one_may_not() {
        let both = |stated| {
            (accepts(RabbitMqVersion::V3_10, stated), accepts(RabbitMqVersion::V4_3, stated))
        };
        assert_eq!(both("3.10.8"), (true, false));
        assert_eq!(both("3.10.8-1.1+deb12u1"), (true, false));
        assert_eq!(both("4.3.6"), (false, true));
        assert_eq!(both("4.10.0"), (false, true));
        for other in ["3.1.0", "4.2.9", "5.3", ""] {
            assert_eq!(both(other), (false, false), "{other}");
        }
    }
}
