//! A publisher that checks nothing: what a client of another language may send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;

/// The bits of the properties that are there.
pub(crate) const CONTENT_TYPE: u16 = 1 << 15;
pub(crate) const HEADERS: u16 = 1 << 13;
pub(crate) const CORRELATION_ID: u16 = 1 << 10;
pub(crate) const REPLY_TO: u16 = 1 << 9;
pub(crate) const MESSAGE_ID: u16 = 1 << 7;
pub(crate) const TYPE: u16 = 1 << 5;
pub(crate) const APP_ID: u16 = 1 << 3;

/// A short string: its length in one byte, and any bytes.
pub(crate) fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string");
    [&[length], text].concat()
}

/// What has its length in four bytes before it: long strings, tables and arrays.
pub(crate) fn long(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a length");
    [&length.to_be_bytes(), content].concat()
}

/// A table with one entry.
pub(crate) fn entry(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
    long(&[&short(name), &[kind][..], value].concat())
}

/// A table in a table, so many times.
pub(crate) fn nested_tables(levels: usize) -> Vec<u8> {
    (1..levels).fold(entry(b"end", b't', &[1]), |inner, _| entry(b"t", b'F', &inner))
}

/// A table with an array in an array, so many times.
pub(crate) fn nested_arrays(levels: usize) -> Vec<u8> {
    let arrays = (1..levels).fold(long(&[]), |inner, _| long(&[b"A", &inner[..]].concat()));
    entry(b"a", b'A', &arrays)
}

/// A connection with one channel, which confirms.
pub(crate) struct Raw(TcpStream);

impl Raw {
    /// Connects to `amqp://user:password@host:port`.
    pub(crate) fn connect(url: &str) -> Self {
        let rest = url.strip_prefix("amqp://").expect("a plain URL");
        let (login, address) = rest.split_once('@').expect("a login");
        let (user, password) = login.split_once(':').expect("a password");
        let stream = TcpStream::connect(address.trim_end_matches('/')).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut raw = Self(stream);
        raw.0.write_all(b"AMQP\0\0\x09\x01").expect("a header");
        raw.expect(10, 10);
        let login = format!("\0{user}\0{password}");
        let parts = [&long(&[])[..], &short(b"PLAIN"), &long(login.as_bytes()), &short(b"en_US")];
        raw.method(0, 10, 11, &parts.concat());
        let tune = raw.expect(10, 30);
        raw.method(0, 10, 31, &tune);
        raw.method(0, 10, 40, &[&short(b"/")[..], &short(b""), &[0]].concat());
        raw.expect(10, 41);
        raw.method(1, 20, 10, &short(b""));
        raw.expect(20, 11);
        raw.method(1, 85, 10, &[0]);
        raw.expect(85, 11);
        raw
    }

    /// Publishes, and waits for the confirm. `properties` are those of `flags` in their order.
    pub(crate) fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        (flags, properties): (u16, &[u8]),
        body: &[u8],
    ) {
        let publish = [&[0, 0], &short(exchange.as_bytes())[..], &short(routing_key), &[0]];
        self.method(1, 60, 40, &publish.concat());
        let size = u64::try_from(body.len()).expect("a size").to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], &flags.to_be_bytes(), properties];
        self.frame(HEADER, 1, &header.concat());
        self.frame(BODY, 1, body);
        self.expect(60, 80);
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes(), &method.to_be_bytes(), arguments];
        self.frame(METHOD, channel, &payload.concat());
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind], &channel.to_be_bytes()[..], &long(payload), &[END]];
        self.0.write_all(&frame.concat()).expect("a written frame");
    }

    /// The arguments of the next method, which must be this one.
    fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let mut header = [0; 7];
            self.0.read_exact(&mut header).expect("a frame of the server");
            let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.0.read_exact(&mut payload).expect("a frame of the server");
            if header[0] != METHOD {
                continue;
            }
            let text = String::from_utf8_lossy(&payload[4..]).into_owned();
            let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
            assert_eq!(payload[..4], expected, "the server said {text:?}");
            payload.pop();
            return payload.split_off(4);
        }
    }
}
