//! The shortest AMQP 0-9-1 conversation that proves a server ready: log in, declare, leave.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Error;
use super::address::Address;

const PORT: u16 = 5672;
const FRAME_END: u8 = 0xCE;
const METHOD: u8 = 1;

type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CLOSE_OK: Method = (10, 51);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const QUEUE_DECLARE: Method = (50, 10);
const QUEUE_DECLARE_OK: Method = (50, 11);

/// Logs in, declares a queue of its own that goes with the connection, and answers the version that
/// the server states.
pub(super) fn probe(url: &str) -> Result<String, Error> {
    let address = Address::parse(url)?;
    if address.scheme != "amqp" {
        return Err(Error::new(
            "the check before the tests speaks no TLS: give the amqp:// URL of the server",
        ));
    }
    converse(&address).map_err(Error::io(address.silence("RabbitMQ", PORT)))
}

fn converse(address: &Address) -> io::Result<String> {
    let mut stream = address.open(PORT)?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;

    let start = expect(&mut stream, START)?;
    let version = server_version(&start).ok_or_else(|| io::Error::other("it states no version"))?;

    let (user, password) = address.user.clone().unwrap_or_else(|| ("guest".into(), "guest".into()));
    let mut login = vec![0; 4];
    short(&mut login, "PLAIN");
    long(&mut login, &format!("\0{user}\0{password}"));
    short(&mut login, "en_US");
    send(&mut stream, 0, START_OK, &login)?;

    // A refused password closes the connection, so that what comes instead of `tune` says why.
    let mut tune = expect(&mut stream, TUNE)?;
    if tune.len() != 8 {
        return Err(io::Error::other("its limits are malformed"));
    }
    tune[6..8].fill(0); // no heartbeats
    send(&mut stream, 0, TUNE_OK, &tune)?;

    let mut open = Vec::new();
    let host = if address.path.is_empty() { "/" } else { &address.path };
    short(&mut open, host);
    open.extend([0, 0]);
    call(&mut stream, 0, OPEN, &open, OPEN_OK)?;
    call(&mut stream, 1, CHANNEL_OPEN, &[0], CHANNEL_OPEN_OK)?;

    let exclusive_and_deleted_with_us = 0b1100;
    let declare = [0, 0, 0, exclusive_and_deleted_with_us, 0, 0, 0, 0];
    call(&mut stream, 1, QUEUE_DECLARE, &declare, QUEUE_DECLARE_OK)?;
    call(&mut stream, 0, CLOSE, &[0, 200, 0, 0, 0, 0, 0], CLOSE_OK)?;
    Ok(version)
}

fn call(
    stream: &mut TcpStream,
    channel: u16,
    method: Method,
    arguments: &[u8],
    answer: Method,
) -> io::Result<Vec<u8>> {
    send(stream, channel, method, arguments)?;
    expect(stream, answer)
}

fn send(
    stream: &mut TcpStream,
    channel: u16,
    (class, id): Method,
    arguments: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(arguments.len() + 4).map_err(io::Error::other)?;
    let mut frame = vec![METHOD];
    frame.extend(channel.to_be_bytes());
    frame.extend(size.to_be_bytes());
    frame.extend(class.to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    stream.write_all(&frame)
}

/// The arguments of the next method, which must be `wanted`.
fn expect(stream: &mut TcpStream, wanted: Method) -> io::Result<Vec<u8>> {
    loop {
        let mut head = [0; 7];
        stream.read_exact(&mut head)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        // Whatever speaks another protocol on this port must not make us allocate its gigabytes.
        if size > 1 << 20 {
            return Err(io::Error::other("it does not speak AMQP 0-9-1"));
        }
        let mut payload = vec![0; size as usize + 1];
        stream.read_exact(&mut payload)?;
        payload.pop();
        if head[0] != METHOD || payload.len() < 4 {
            continue;
        }
        let arguments = payload.split_off(4);
        let method = (
            u16::from_be_bytes([payload[0], payload[1]]),
            u16::from_be_bytes([payload[2], payload[3]]),
        );
        if method == wanted {
            return Ok(arguments);
        }
        if method == CLOSE || method == CHANNEL_CLOSE {
            // A code, then the reason with its length before it.
            let reason = arguments.get(2).zip(arguments.get(3..)).unwrap_or((&0, &[]));
            let reason = &reason.1[..reason.1.len().min(usize::from(*reason.0))];
            return Err(io::Error::other(String::from_utf8_lossy(reason).into_owned()));
        }
        return Err(io::Error::other(format!("it answered {method:?} instead of {wanted:?}")));
    }
}

/// Finds `version` in the table of server properties, where every value before it is a string, a
/// table or a boolean.
fn server_version(start: &[u8]) -> Option<String> {
    let mut table = start.get(6..)?;
    while let Some((&length, rest)) = table.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(length))?;
        let (&kind, rest) = rest.split_first()?;
        let (value, rest) = match kind {
            b'S' | b'F' => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                rest.split_at_checked(u32::from_be_bytes(*length) as usize)?
            }
            b't' => rest.split_at_checked(1)?,
            _ => return None,
        };
        if name == b"version" {
            return String::from_utf8(value.to_vec()).ok();
        }
        table = rest;
    }
    None
}

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.bytes().take(usize::from(u8::MAX)));
}

fn long(out: &mut Vec<u8>, text: &str) {
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(text.bytes());
}
