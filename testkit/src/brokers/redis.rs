use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::certificates::Certificates;
use super::packages::{BOOKWORM, FORKY, Package, Programs};
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Error, Server, find, resp};

/// Which Redis, or Valkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisVersion {
    /// Redis 7.0, the oldest that is supported; in Debian 12.
    V7_0,
    /// Redis 8 or later; in Debian testing.
    V8,
    /// Valkey 9 or later; in Debian testing.
    Valkey9,
}

/// A Redis or Valkey server to find or to start.
#[derive(Debug, Clone)]
pub struct Redis {
    version: RedisVersion,
    user: Option<(String, String)>,
    has_tls: bool,
    config: String,
}

impl Redis {
    /// A server that loses nothing it confirmed: `appendonly yes`, `appendfsync always`,
    /// `maxmemory-policy noeviction`. It asks for no password.
    pub fn new(version: RedisVersion) -> Self {
        Self { version, user: None, has_tls: false, config: String::new() }
    }

    /// A user with all rights, and none for whoever does not log in.
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

    /// A line for `redis.conf`, such as `maxmemory 100mb`. It counts more than what is set by
    /// default.
    pub fn config(mut self, line: &str) -> Self {
        self.config.push_str(line);
        self.config.push('\n');
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
        match &self.user {
            Some((user, password)) => {
                format!("{scheme}://{}:{}@127.0.0.1:{port}", encode(user), encode(password))
            }
            None => format!("{scheme}://127.0.0.1:{port}"),
        }
    }

    fn environment(&self, site: &Site) -> Vec<(&'static str, String)> {
        let server = match self.version {
            RedisVersion::V7_0 | RedisVersion::V8 => "redis-server",
            RedisVersion::Valkey9 => "valkey-server",
        };
        vec![
            ("SERVER", server.to_owned()),
            ("DATA", site.data().display().to_string()),
            ("CONFIG", site.folder.join("redis.conf").display().to_string()),
        ]
    }
}

const TLS_PORT: usize = 1;

const SCRIPT: &str = r#"mkdir -p "$DATA" && exec "$SERVER" "$CONFIG""#;

impl Recipe for Redis {
    fn name(&self) -> &'static str {
        match self.version {
            RedisVersion::V7_0 => "Redis 7.0",
            RedisVersion::V8 => "Redis 8",
            RedisVersion::Valkey9 => "Valkey 9",
        }
    }

    fn variables(&self) -> &'static [&'static str] {
        match self.version {
            RedisVersion::V7_0 => &["ANYBROKER_REDIS_70_URL", "ANYBROKER_REDIS_URL"],
            RedisVersion::V8 => &["ANYBROKER_REDIS_8_URL", "ANYBROKER_REDIS_URL"],
            RedisVersion::Valkey9 => &["ANYBROKER_VALKEY_9_URL", "ANYBROKER_REDIS_URL"],
        }
    }

    fn example_url(&self) -> &'static str {
        "redis://127.0.0.1:6379"
    }

    fn accepts(&self, version: &str) -> bool {
        accepts(self.version, version)
    }

    fn probe(&self, url: &str) -> Result<String, Error> {
        resp::probe(url)
    }

    fn url(&self, site: &Site) -> String {
        self.secured("redis", site.port())
    }

    fn tls_url(&self, site: &Site) -> Option<String> {
        self.has_tls.then(|| self.secured("rediss", site.ports[TLS_PORT]))
    }

    fn configure(&self, site: &Site) -> Result<(), Error> {
        let mut config = format!(
            "bind {}\nport {}\nprotected-mode no\ndir {}\nsave \"\"\nappendonly yes\n\
             appendfsync always\nmaxmemory-policy noeviction\n",
            site.listen,
            site.port(),
            site.data().display(),
        );
        if let Some((user, password)) = &self.user {
            let _ = write!(
                config,
                "user default off\nuser {} on {} ~* &* +@all\n",
                quoted(user),
                quoted(&format!(">{password}")),
            );
        }
        if self.has_tls {
            let files = Certificates::make(site)?;
            let _ = write!(
                config,
                "tls-port {}\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n\
                 tls-auth-clients no\n",
                site.ports[TLS_PORT],
                files.authority.display(),
                files.certificate.display(),
                files.key.display(),
            );
        }
        config.push_str(&self.config);
        site.write("redis.conf", &config).map(drop)
    }

    fn image(&self, site: &Site) -> Image {
        let (variable, name, tag) = match self.version {
            RedisVersion::V7_0 => ("ANYBROKER_REDIS_70_IMAGE", "redis", "7.0"),
            RedisVersion::V8 => ("ANYBROKER_REDIS_8_IMAGE", "redis", "8"),
            RedisVersion::Valkey9 => ("ANYBROKER_VALKEY_9_IMAGE", "valkey/valkey", "9"),
        };
        Image::new(variable, name, tag, self.environment(site)).script(SCRIPT)
    }

    fn install(&self) -> Result<Programs, Error> {
        let (name, program, suite) = match self.version {
            RedisVersion::V7_0 => ("redis-server", "usr/bin/redis-server", BOOKWORM),
            RedisVersion::V8 => ("redis-server", "usr/bin/redis-server", FORKY),
            RedisVersion::Valkey9 => ("valkey-server", "usr/bin/valkey-server", FORKY),
        };
        let accepts: fn(&str) -> bool = match self.version {
            RedisVersion::V7_0 => |version| accepts(RedisVersion::V7_0, version),
            RedisVersion::V8 => |version| accepts(RedisVersion::V8, version),
            RedisVersion::Valkey9 => {
                |version| accepts(RedisVersion::Valkey9, &format!("Valkey {version}"))
            }
        };
        Package { name, program, suite, accepts }.install()
    }

    fn script(&self, site: &Site) -> Script {
        Script { environment: self.environment(site), text: SCRIPT }
    }
}

/// One word of the configuration file, whatever it holds.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for byte in text.bytes() {
        let _ = write!(quoted, "\\x{byte:02x}");
    }
    quoted.push('"');
    quoted
}

fn accepts(wanted: RedisVersion, stated: &str) -> bool {
    let (is_valkey, version) =
        stated.strip_prefix("Valkey ").map_or((false, stated), |version| (true, version));
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (wanted, numbers.next(), numbers.next()) {
        (RedisVersion::V7_0, Some(7), Some(0)) => !is_valkey,
        (RedisVersion::V8, Some(major), _) => !is_valkey && major >= 8,
        (RedisVersion::Valkey9, Some(major), _) => is_valkey && major >= 9,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{RedisVersion, accepts};

    #[test]
    fn valkey_is_no_redis_and_current_versions_may_be_newer() {
        let all = |stated| {
            [RedisVersion::V7_0, RedisVersion::V8, RedisVersion::Valkey9]
                .map(|version| accepts(version, stated))
        };
        assert_eq!(all("7.0.15"), [true, false, false]);
        assert_eq!(all("8.0.6"), [false, true, false]);
        assert_eq!(all("10.2.0"), [false, true, false]);
        assert_eq!(all("Valkey 9.1.2"), [false, false, true]);
        for other in ["7.2.4", "6.2.0", "Valkey 8.1.0", ""] {
            assert_eq!(all(other), [false; 3], "{other}");
        }
    }
}
