//! The shortest conversation with SQS, SNS or what stands in for them: one call of their query
//! protocol, over plain HTTP.

use std::io::{self, Read, Write};

use super::Error;
use super::address::Address;

const PORT: u16 = 80;

/// What answers behind a URL such as `sqs://eu-central-1`.
pub(super) const AWS: &str = "AWS";

/// Makes a call without arguments, and answers what the server calls itself: neither of the two
/// states a version.
pub(super) fn probe(url: &str, action: &str) -> Result<String, Error> {
    // It takes signed calls alone.
    if url.starts_with("sqs://") {
        return Ok(AWS.to_owned());
    }
    let address = Address::parse(url)?;
    if address.scheme != "sqs+http" {
        return Err(Error::new(
            "the check before the tests speaks no TLS: give an sqs+http:// URL of an emulator",
        ));
    }
    let failed = Error::io(address.silence("SQS or SNS", PORT));
    let (server, _) = call(&address, action, "").map_err(failed)?;
    Ok(server)
}

/// What the server calls itself, and its answer.
pub(super) fn call(
    address: &Address,
    action: &str,
    arguments: &str,
) -> io::Result<(String, String)> {
    let mut stream = address.open(PORT)?;
    let host = &address.host;
    write!(stream, "GET /?Action={action}{arguments} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("it does not speak HTTP"))?;
    let mut head = head.lines();
    let status = head.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") || !body.contains(&format!("{action}Response")) {
        return Err(io::Error::other(format!("it answered `{status}` to {action}")));
    }
    let server = head.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("server").then_some(value.trim())
    });
    Ok((server.unwrap_or("of unstated version").to_owned(), body.to_owned()))
}
