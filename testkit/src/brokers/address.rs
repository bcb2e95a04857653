use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::Error;

const PATIENCE: Duration = Duration::from_secs(5);

/// The parts of a broker URL that a first handshake needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) scheme: String,
    pub(super) user: Option<(String, String)>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) path: String,
}

impl Address {
    /// Reads `scheme://user:password@host:port/path?query`; no error shows the password.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| Error::new("a server's URL looks like scheme://host:port"))?;
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (host, port) = match place.rsplit_once(':') {
            // An IPv6 address without a port ends in its bracket.
            Some((host, port)) if !port.ends_with(']') => {
                let port =
                    port.parse().map_err(|_| Error::new(format!("`{port}` is not a port")))?;
                (host, Some(port))
            }
            _ => (place, None),
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            user: user.map(|user| {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                (decode(name), decode(password))
            }),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            path: decode(path),
        })
    }

    /// What a probe says that got no answer.
    pub(super) fn silence(&self, server: &str, default_port: u16) -> String {
        format!("no {server} answers on {}:{}", self.host, self.port.unwrap_or(default_port))
    }

    /// Connects, and neither this nor an answer takes longer than five seconds.
    pub(super) fn open(&self, default_port: u16) -> io::Result<TcpStream> {
        let socket = (self.host.as_str(), self.port.unwrap_or(default_port))
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other("the host has no address"))?;
        let stream = TcpStream::connect_timeout(&socket, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn parts_of_a_url_are_decoded() {
        let address = Address::parse("amqp://us%40er:p%3Aw@[::1]:5673/%2fa?x=1").unwrap();
        assert_eq!(address.user, Some(("us@er".into(), "p:w".into())));
        assert_eq!((address.host.as_str(), address.port), ("::1", Some(5673)));
        assert_eq!(address.path, "/a");

        let bare = Address::parse("redis://[::1]").unwrap();
        assert_eq!((bare.host.as_str(), bare.port), ("::1", None));
        assert_eq!((bare.user, bare.path.as_str()), (None, ""));
    }

    #[test]
    fn password_is_in_no_error() {
        let error = Address::parse("amqp://user:secret@host:x1").unwrap_err();
        assert_eq!(error.to_string(), "`x1` is not a port");
    }
}
