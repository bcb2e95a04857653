//! The shortest conversation with Redis or Valkey that proves a server ready.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::Error;
use super::address::Address;

const PORT: u16 = 6379;

/// Logs in, waits for no loading, and answers what the server states: `8.0.6`, `Valkey 9.1.2`.
pub(super) fn probe(url: &str) -> Result<String, Error> {
    let address = Address::parse(url)?;
    if address.scheme != "redis" && address.scheme != "valkey" {
        return Err(Error::new(
            "the check before the tests speaks no TLS: give the redis:// URL of the server",
        ));
    }
    converse(&address).map_err(Error::io(address.silence("Redis", PORT)))
}

fn converse(address: &Address) -> io::Result<String> {
    let mut stream = BufReader::new(address.open(PORT)?);
    if let Some((user, password)) = &address.user {
        let user = if user.is_empty() { "default" } else { user };
        call(&mut stream, &["AUTH", user, password])?;
    }
    // A server that still reads its data answers `INFO` and refuses this.
    call(&mut stream, &["PING"])?;
    let info = call(&mut stream, &["INFO", "server"])?;
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => Ok(format!("Valkey {version}")),
        (None, Some(version)) => Ok(version.to_owned()),
        (None, None) => Err(io::Error::other("it states no version")),
    }
}

/// The answer to one command, which is a text of either kind.
fn call(stream: &mut BufReader<TcpStream>, command: &[&str]) -> io::Result<String> {
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        let _ = write!(request, "${}\r\n{word}\r\n", word.len());
    }
    stream.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    stream.by_ref().take(1 << 10).read_line(&mut line)?;
    let line = line.trim_end();
    let not_redis = || io::Error::other("it does not speak the protocol of Redis");
    match line.split_at_checked(1).ok_or_else(not_redis)? {
        ("+", text) => Ok(text.to_owned()),
        ("-", reason) => Err(io::Error::other(reason.to_owned())),
        ("$", length) => {
            let length: u16 = length.parse().map_err(|_| not_redis())?;
            let mut text = vec![0; usize::from(length) + 2];
            stream.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        _ => Err(not_redis()),
    }
}
