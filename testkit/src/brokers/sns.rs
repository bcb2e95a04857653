use super::packages::{Programs, Venv};
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Error, Server, find, query};

/// `MiniStack`, which stands in for SNS and SQS at one address; to find or to start. It knows FIFO
/// topics and refuses stale receipts and forbidden characters; it has no move tasks, and keeps
/// everything in memory.
#[derive(Debug, Clone, Default)]
pub struct Sns(());

impl Sns {
    /// A server that keeps everything in memory: [`Server::restart`] empties it.
    pub fn new() -> Self {
        Self::default()
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

impl Recipe for Sns {
    fn name(&self) -> &'static str {
        "MiniStack 1.5"
    }

    fn variables(&self) -> &'static [&'static str] {
        // AWS itself may be behind the general one: then a server of our own is started, so that
        // nothing is tested on somebody's account unasked.
        &["ANYBROKER_SNS_URL", "ANYBROKER_SQS_URL"]
    }

    fn example_url(&self) -> &'static str {
        "sqs+http://127.0.0.1:4566"
    }

    fn accepts(&self, version: &str) -> bool {
        version != query::AWS
    }

    fn probe(&self, url: &str) -> Result<String, Error> {
        query::probe(url, "ListQueues")?;
        query::probe(url, "ListTopics")
    }

    fn url(&self, site: &Site) -> String {
        format!("sqs+http://127.0.0.1:{}", site.port())
    }

    fn tls_url(&self, _: &Site) -> Option<String> {
        None
    }

    fn configure(&self, _: &Site) -> Result<(), Error> {
        Ok(())
    }

    fn image(&self, site: &Site) -> Image {
        let environment =
            vec![("GATEWAY_PORT", site.port().to_string()), ("SFTP_ENABLED", "0".to_owned())];
        Image::new("ANYBROKER_MINISTACK_IMAGE", "ministackorg/ministack", "1.5.33", environment)
    }

    fn install(&self) -> Result<Programs, Error> {
        Venv { name: "ministack-1.5.33", packages: &["ministack==1.5.33"] }
            .install()
            .map(Programs::Folder)
    }

    fn script(&self, site: &Site) -> Script {
        let environment = vec![
            ("GATEWAY_PORT", site.port().to_string()),
            ("BIND_HOST", site.listen.to_owned()),
            ("SFTP_ENABLED", "0".to_owned()),
            ("TMPDIR", site.folder.display().to_string()),
        ];
        Script { environment, text: r#"exec "$PROGRAMS/bin/python" -m ministack"# }
    }
}
