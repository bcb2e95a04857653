use std::fmt;
use std::path::PathBuf;

use crate::{BrokerUrl, Error, ErrorKind, Result};

/// A server that is reached by host and port, with a login and TLS where the URL says so. An adapter
/// keeps it in its settings, and its builder has a [method](crate::adapter::server_methods) for each
/// option.
///
/// The login shows in no output.
#[derive(Clone)]
#[non_exhaustive]
pub struct Server {
    /// Hosts and ports.
    pub hosts: Vec<(String, u16)>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The largest message that the server takes, in bytes.
    pub max_payload: usize,
    /// A PEM file of authorities to trust.
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate to show, and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What retry and dead-lettering may add to a message.
const KEPT_BACK: usize = 64 * 1024;

impl Server {
    /// The server on this machine that listens at the port, and takes messages of this size.
    pub fn local(port: u16, max_payload: usize) -> Self {
        let hosts = vec![("localhost".to_owned(), port)];
        let (user, password, ca, identity) = (None, None, None, None);
        Self { hosts, tls: false, user, password, max_payload, ca, identity }
    }

    /// Takes hosts, login, and the options `max-payload`, `ca`, `cert` and `key` out of a URL.
    /// Schemes without and with TLS stand with their ports.
    ///
    /// # Errors
    /// `Config` for another scheme, or a value that does not parse.
    pub fn read(
        &mut self,
        url: &mut BrokerUrl,
        plain: &[(&str, u16)],
        encrypted: &[(&str, u16)],
    ) -> Result<()> {
        let port = |schemes: &[(&str, u16)]| {
            schemes.iter().find(|(scheme, _)| *scheme == url.scheme()).map(|(_, port)| *port)
        };
        let Some(default_port) = port(plain).or(port(encrypted)) else {
            let known = plain.iter().chain(encrypted).map(|(scheme, _)| format!("{scheme}://"));
            let known = known.collect::<Vec<_>>().join(" or ");
            return Err(config(format!(
                "scheme {:?} is another broker's: write {known}",
                url.scheme()
            )));
        };
        self.tls = port(encrypted).is_some();
        self.hosts = url.hosts(default_port)?;
        if url.user().is_some() || url.password().is_some() {
            self.user = url.user().map(str::to_owned);
            self.password = url.password().map(str::to_owned);
        }
        if let Some(max) = url.option("max-payload", "a number of bytes")? {
            self.max_payload = max;
        }
        let [ca, certificate, key] =
            ["ca", "cert", "key"].map(|name| url.option(name, "the path of a PEM file"));
        if let Some(ca) = ca? {
            self.ca = Some(ca);
        }
        match (certificate?, key?) {
            (Some(certificate), Some(key)) => self.identity = Some((certificate, key)),
            (None, None) => {}
            _ => return Err(config("options cert and key belong together: write both".to_owned())),
        }
        Ok(())
    }

    /// The largest payload: what the server takes, but for what retry and dead-lettering may add.
    pub fn largest_payload(&self) -> usize {
        self.max_payload.saturating_sub(KEPT_BACK)
    }
}

fn config(text: String) -> Error {
    Error::new(ErrorKind::Config, text).operation("connect")
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("hosts", &self.hosts)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Gives a builder, inside its `impl`, the methods `credentials`, `max_payload`, `ca` and
/// `client_certificate`. The builder is a tuple whose first field has a field `server`; the texts
/// are the documentation of `max_payload`, and whether authorities are trusted beside the system's
/// or instead.
///
/// ```
/// # use anybroker_core::adapter::{Server, server_methods};
/// struct Settings { server: Server }
/// /// Sets up a connection.
/// pub struct MyBuilder(Settings);
/// impl MyBuilder {
///     server_methods!("Sets the largest message in bytes.", "instead of the system's");
/// }
/// ```
#[macro_export]
#[doc(hidden)]
macro_rules! __adapter_server_methods {
    ($max_payload:literal, $trusted:literal) => {
        /// Sets user and password.
        pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
            self.0.server.user = Some(user.into());
            self.0.server.password = Some(password.into());
            self
        }

        #[doc = $max_payload]
        pub fn max_payload(mut self, bytes: usize) -> Self {
            self.0.server.max_payload = bytes;
            self
        }

        #[doc = concat!("Trusts the certificate authorities in this PEM file ", $trusted, ".")]
        pub fn ca(mut self, path: impl Into<::std::path::PathBuf>) -> Self {
            self.0.server.ca = Some(path.into());
            self
        }

        /// Shows this certificate to the server; PEM files, the key best in PKCS#8.
        pub fn client_certificate(
            mut self,
            cert: impl Into<::std::path::PathBuf>,
            key: impl Into<::std::path::PathBuf>,
        ) -> Self {
            self.0.server.identity = Some((cert.into(), key.into()));
            self
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Server> {
        let mut server = Server::local(1, 100_000);
        let mut url: BrokerUrl = url.parse()?;
        server.read(&mut url, &[("mine", 1), ("ours", 2)], &[("mines", 3)])?;
        url.finish().map(|()| server)
    }

    #[test]
    fn a_url_names_the_server() {
        let server =
            read("mines://app:secret@a,b:9?max-payload=70000&ca=/ca").expect("it is right");
        assert_eq!(server.hosts, [("a".to_owned(), 3), ("b".to_owned(), 9)]);
        assert_eq!((server.tls, server.largest_payload()), (true, 70_000 - KEPT_BACK));
        assert_eq!(
            (server.user.as_deref(), server.password.as_deref()),
            (Some("app"), Some("secret"))
        );
        assert_eq!(server.ca.as_deref(), Some("/ca".as_ref()));
        assert!(!format!("{server:?}").contains("secret"));
        assert_eq!(read("ours://h").expect("it is right").hosts, [("h".to_owned(), 2)]);
        assert_eq!(read("mine://:pw@h").expect("it is right").user, None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (url, text) in [
            ("yours://h", "write mine:// or ours:// or mines://"),
            ("mine://", "names no host"),
            ("mine://h?cert=/a", "belong together"),
            ("mine://h?max-payload=much", "a number of bytes"),
        ] {
            let error = read(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
