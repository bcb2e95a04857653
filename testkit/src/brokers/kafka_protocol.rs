//! The shortest conversation with Kafka that proves a broker ready: its features, a login, the
//! cluster's members.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Error;
use super::address::Address;

const PORT: u16 = 9092;

/// Key and version of the requests.
type Request = (i16, i16);
const METADATA: Request = (3, 1);
const SASL_HANDSHAKE: Request = (17, 1);
const API_VERSIONS: Request = (18, 3);
const SASL_AUTHENTICATE: Request = (36, 0);

/// Logs in, asks for the members, and answers the release that the broker's features belong to.
pub(super) fn probe(url: &str) -> Result<String, Error> {
    let mut address = Address::parse(url)?;
    if address.scheme != "kafka" {
        return Err(Error::new(
            "the check before the tests speaks no TLS: give the kafka:// URL of the broker",
        ));
    }
    // `host:port,host:port` ends in a port that the first host may not have.
    if let Some((first, _)) = address.host.clone().split_once(',') {
        let (host, port) = first.split_once(':').unwrap_or((first, "9092"));
        host.clone_into(&mut address.host);
        address.port = port.parse().ok();
    }
    converse(&address).map_err(Error::io(address.silence("Kafka", PORT)))
}

fn converse(address: &Address) -> io::Result<String> {
    let mut stream = address.open(PORT)?;
    // No tags of the header, name and version of the client, no tags.
    let answer = call(&mut stream, API_VERSIONS, b"\0\x0aanybroker\x021\0")?;
    let level = metadata_version(&answer).ok_or_else(|| io::Error::other("it is no KRaft"))?;
    if let Some((user, password)) = &address.user {
        let mechanism = call(&mut stream, SASL_HANDSHAKE, &text("PLAIN"))?;
        refused(&mechanism)?;
        let login = format!("\0{user}\0{password}");
        let mut body = u32::try_from(login.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        body.extend(login.bytes());
        refused(&call(&mut stream, SASL_AUTHENTICATE, &body)?)?;
    }
    // Of no topic.
    let members = call(&mut stream, METADATA, &[0; 4])?;
    // A broker that has not joined yet knows of none.
    if members.get(..4).is_none_or(|count| count == [0; 4]) {
        return Err(io::Error::other("it has not joined its cluster"));
    }
    Ok(release(level))
}

/// The release that has a level of `metadata.version` as its newest.
fn release(level: i16) -> String {
    match level {
        ..=20 => format!("older than 3.9 (metadata version {level})"),
        21 => "3.9".to_owned(),
        22..=25 => "4.0".to_owned(),
        26..=27 => "4.1".to_owned(),
        28..=29 => "4.2".to_owned(),
        30 => "4.3".to_owned(),
        _ => format!("newer than 4.3 (metadata version {level})"),
    }
}

/// The body of the answer to a request.
fn call(stream: &mut TcpStream, (key, version): Request, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = key.to_be_bytes().to_vec();
    request.extend(version.to_be_bytes());
    request.extend([0; 4]); // the correlation id
    request.extend(text("anybroker"));
    request.extend(body);
    let size = u32::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&size.to_be_bytes())?;
    stream.write_all(&request)?;

    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = u32::from_be_bytes(size);
    // Whatever speaks another protocol on this port must not make us allocate its gigabytes.
    if !(4..1 << 20).contains(&size) {
        return Err(io::Error::other("it does not speak the protocol of Kafka"));
    }
    let mut answer = vec![0; size as usize];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4))
}

/// Fails where an answer begins with an error code.
fn refused(answer: &[u8]) -> io::Result<()> {
    match answer {
        [0, 0, ..] => Ok(()),
        [high, low, ..] => {
            let code = i16::from_be_bytes([*high, *low]);
            Err(io::Error::other(format!("it refuses the login with error {code}")))
        }
        _ => Err(io::Error::other("its answer is malformed")),
    }
}

/// Finds the newest `metadata.version` that the broker supports.
fn metadata_version(answer: &[u8]) -> Option<i16> {
    let mut rest = answer.get(2..)?;
    for _ in 1..number(&mut rest)? {
        // Key, oldest and newest version, no tags.
        rest = rest.get(7..)?;
    }
    rest = rest.get(4..)?; // the throttle time
    for _ in 0..number(&mut rest)? {
        let (tag, size) = (number(&mut rest)?, number(&mut rest)?);
        let (mut field, after) = rest.split_at_checked(size)?;
        rest = after;
        if tag != 0 {
            continue;
        }
        for _ in 1..number(&mut field)? {
            let length = number(&mut field)?.checked_sub(1)?;
            let (name, after) = field.split_at_checked(length)?;
            // Oldest and newest version, no tags.
            let (versions, after) = after.split_first_chunk::<5>()?;
            if name == b"metadata.version" {
                return Some(i16::from_be_bytes([versions[2], versions[3]]));
            }
            field = after;
        }
    }
    None
}

/// A number of variable length, of one or two bytes here.
fn number(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}
