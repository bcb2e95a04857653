use std::fmt::Debug;

use super::Error;
use super::packages::Programs;
use super::site::Site;

/// What is particular to one kind of server; finding, waiting and stopping are the same for all.
pub(super) trait Recipe: Debug + Send + Sync {
    /// As a person says it: `RabbitMQ 4.3`.
    fn name(&self) -> &'static str;

    /// Environment variables that may hold the URL of such a server. The last is the general one,
    /// whose server may be another version; the others must hold what they say.
    fn variables(&self) -> &'static [&'static str];

    /// What such a URL looks like.
    fn example_url(&self) -> &'static str;

    /// Whether a server that states this version will do.
    fn accepts(&self, version: &str) -> bool;

    /// Gets a real answer from the server, and the version it states.
    fn probe(&self, url: &str) -> Result<String, Error>;

    fn url(&self, site: &Site) -> String;

    /// The URL of the listener with TLS, where the server has one.
    fn tls_url(&self, site: &Site) -> Option<String>;

    /// Writes the configuration into the site's folder.
    fn configure(&self, site: &Site) -> Result<(), Error>;

    /// The ready image.
    fn image(&self, site: &Site) -> Image;

    /// Sees to it that the programs are there.
    fn install(&self) -> Result<Programs, Error>;

    /// Environment and shell script of the server as a process. The script's own process group is
    /// all of the server: nothing in it may daemonize.
    fn script(&self, site: &Site) -> Script;
}

/// A container image. The site's folder is in the container under the same path.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) tag: String,
    #[cfg_attr(
        not(feature = "containers"),
        expect(dead_code, reason = "only a container is started with it")
    )]
    pub(super) environment: Vec<(&'static str, String)>,
    /// The shell script that it runs instead of its default command, if any.
    pub(super) script: Option<&'static str>,
}

impl Image {
    /// The official image, or the one whose name is in the environment: a mirror's, say. A name with
    /// a tag is used as it is.
    pub(super) fn new(
        variable: &str,
        name: &str,
        tag: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        let chosen = std::env::var(variable).ok().filter(|name| !name.is_empty());
        let name = chosen.as_deref().unwrap_or(name);
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before a slash is that of a registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (name, tag),
        };
        Self { name: name.to_owned(), tag: tag.to_owned(), environment, script: None }
    }

    /// Runs the server by the script that runs it as a process, too.
    pub(super) fn script(mut self, text: &'static str) -> Self {
        self.script = Some(text);
        self
    }
}

#[derive(Debug)]
pub(super) struct Script {
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) text: &'static str,
}
