use std::iter;

use lapin::protocol::basic::parse_properties;
use lapin::protocol::parse_class;
use lapin::types::AMQPValue;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn short_string(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short string")], text].concat()
}

fn long(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).expect("a length").to_be_bytes(), content].concat()
}

fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short_string(name), value].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind], &channel.to_be_bytes()[..], &long(payload), &[0xce]].concat()
}

fn deliver(consumer: &[u8], tag: u64, exchange: &[u8], routing_key: &[u8]) -> Vec<u8> {
    let consumer = short_string(consumer);
    let place = [short_string(exchange), short_string(routing_key)].concat();
    let payload = [&[0, 60, 0, 60], &consumer[..], &tag.to_be_bytes(), &[1], &place];
    frame(METHOD, 1, &payload.concat())
}

fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
    let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
    frame(HEADER, 1, &[&fixed, &flags.to_be_bytes()[..], properties].concat())
}

const HEADERS: u16 = 1 << 13;
const MESSAGE_ID: u16 = 1 << 7;

/// A table in a table, so many times, without the type of the outer one.
fn nested(levels: usize) -> Vec<u8> {
    (1..levels).fold(long(&[]), |inner, _| long(&entry(b"t", &[b"F", &inner[..]].concat())))
}

/// The payloads of frames, with their types.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    iter::from_fn(|| {
        let size = bytes.get(3..PREFIX)?.try_into().map(u32::from_be_bytes).ok()? as usize;
        let (frame, rest) = bytes.split_at(PREFIX + size + 1);
        bytes = rest;
        Some((frame[0], &frame[PREFIX..PREFIX + size]))
    })
    .collect()
}

/// Sends bytes in pieces of these sizes, again and again; with nothing to read between them.
struct Script<'a> {
    bytes: &'a [u8],
    pieces: iter::Cycle<std::slice::Iter<'a, usize>>,
    waits: bool,
}

impl AsyncRead for Script<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.waits = !self.waits;
        if self.waits {
            return Poll::Pending;
        }
        let piece = *self.pieces.next().expect("a piece");
        let count = piece.min(buffer.len()).min(self.bytes.len());
        let (sent, rest) = self.bytes.split_at(count);
        buffer[..count].copy_from_slice(sent);
        self.bytes = rest;
        Poll::Ready(Ok(count))
    }
}

/// What the client gets of bytes that come in such pieces, if it reads with such buffers.
fn read_in(bytes: &[u8], pieces: &[usize], buffers: &[usize]) -> Vec<u8> {
    let script = Script { bytes, pieces: pieces.iter().cycle(), waits: false };
    let mut guarded = Guarded::new(script);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut out = Vec::new();
    for size in buffers.iter().cycle() {
        let mut buffer = vec![0; *size];
        match Pin::new(&mut guarded).poll_read(&mut cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(read) => match read.expect("nothing fails") {
                0 => break,
                count => out.extend_from_slice(&buffer[..count]),
            },
        }
    }
    out
}

fn guarded(bytes: &[u8]) -> Vec<u8> {
    read_in(bytes, &[bytes.len()], &[bytes.len()])
}

/// As the client reads them.
fn parses(bytes: &[u8]) {
    for (kind, payload) in frames(bytes) {
        match kind {
            METHOD => assert!(parse_class(payload).expect("a method").0.is_empty()),
            HEADER => {
                let (rest, _) = parse_properties(&payload[12..]).expect("properties");
                assert!(rest.is_empty());
            }
            _ => {}
        }
    }
}

fn text(hostile: bool) -> BoxedStrategy<Vec<u8>> {
    let valid = "[a-zäß€]{0,12}".prop_map(String::into_bytes);
    if hostile { prop_oneof![valid, vec(any::<u8>(), 0..12)].boxed() } else { valid.boxed() }
}

/// A value with its type before it. Of hostile ones some are deeper than the client reads.
fn value(hostile: bool) -> BoxedStrategy<Vec<u8>> {
    let fixed = [("V", 0), ("tbB", 1), ("sUu", 2), ("Iif", 4), ("D", 5), ("LldT", 8)];
    let fixed = fixed.into_iter().flat_map(|(kinds, size)| kinds.bytes().map(move |k| (k, size)));
    let fixed =
        prop::sample::select(fixed.collect::<Vec<(u8, usize)>>()).prop_flat_map(|(kind, size)| {
            vec(any::<u8>(), size).prop_map(move |v| [vec![kind], v].concat())
        });
    let bytes = (prop::sample::select(vec![b'S', b'x']), vec(any::<u8>(), 0..200))
        .prop_map(|(kind, content)| [&[kind], &long(&content)[..]].concat());
    let levels = if hostile { 1..400_usize } else { 1..90 };
    let deep = levels.prop_map(|levels| [b"F", &nested(levels)[..]].concat());
    let leaf = prop_oneof![8 => fixed, 4 => bytes, 1 => deep];
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        let array = vec(inner.clone(), 0..6);
        let array = array.prop_map(|values| [b"A", &long(&values.concat())[..]].concat());
        prop_oneof![array, table(hostile, inner).prop_map(|t| [b"F", &t[..]].concat())]
    });
    value.boxed()
}

fn table(hostile: bool, value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let entries = vec((text(hostile), value), 0..6);
    entries.prop_map(|entries| {
        let entries: Vec<_> = entries.iter().map(|(name, value)| entry(name, value)).collect();
        long(&entries.concat())
    })
}

fn properties(hostile: bool) -> impl Strategy<Value = Vec<u8>> {
    let flags = any::<u16>().prop_map(|flags| flags & 0xfffc);
    (flags, vec(text(hostile), 14), table(hostile, value(hostile)), any::<u64>()).prop_map(
        |(flags, texts, table, number)| {
            let number = number.to_be_bytes();
            let mut all = Vec::new();
            for (index, text) in
                texts.iter().enumerate().filter(|(i, _)| flags & (1 << (15 - i)) != 0)
            {
                match index {
                    2 => all.extend_from_slice(&table),
                    3 | 4 => all.push(number[index]),
                    9 => all.extend_from_slice(&number),
                    _ => all.extend_from_slice(&short_string(text)),
                }
            }
            header(flags, &all)
        },
    )
}

/// The frames of a server.
fn stream(hostile: bool) -> impl Strategy<Value = Vec<u8>> {
    let delivered = (text(hostile), any::<u64>(), text(hostile), text(hostile))
        .prop_map(|(consumer, tag, exchange, key)| deliver(&consumer, tag, &exchange, &key));
    let got = (text(hostile), text(hostile)).prop_map(|(exchange, key)| {
        let fixed = [0, 60, 0, 71, 0, 0, 0, 0, 0, 0, 0, 200, 0];
        let place = [short_string(&exchange), short_string(&key)].concat();
        frame(METHOD, 2, &[&fixed, &place[..], &[0, 0, 0, 1]].concat())
    });
    let returned = (text(hostile), text(hostile)).prop_map(|(exchange, key)| {
        let place = [short_string(&exchange), short_string(&key)].concat();
        frame(METHOD, 3, &[&[0, 60, 0, 50, 1, 56], &short_string(b"NO_ROUTE")[..], &place].concat())
    });
    let closed = text(hostile).prop_map(|text| {
        frame(METHOD, 3, &[&[0, 20, 0, 40, 1, 148], &short_string(&text)[..], &[0; 4]].concat())
    });
    let acked = any::<u64>().prop_map(|tag| {
        frame(METHOD, 3, &[&[0, 60, 0, 80], &tag.to_be_bytes()[..], &[0]].concat())
    });
    let body = vec(any::<u8>(), 0..300).prop_map(|body| frame(BODY, 1, &body));
    let message = prop_oneof![
        2 => delivered, 1 => got, 1 => returned, 1 => closed, 1 => acked, 4 => properties(hostile), 3 => body,
        1 => Just(frame(HEARTBEAT, 0, &[])),
    ];
    vec(message, 0..12).prop_map(|frames| frames.concat())
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..9_usize, 1..2_000_usize], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_client_reads_passes_as_it_is(
        bytes in stream(false), pieces in sizes(), buffers in sizes(),
    ) {
        parses(&bytes);
        prop_assert_eq!(read_in(&bytes, &pieces, &buffers), bytes);
    }

    #[test]
    fn whatever_comes_the_client_reads_it(
        bytes in stream(true), pieces in sizes(), buffers in sizes(),
    ) {
        let out = read_in(&bytes, &pieces, &buffers);
        prop_assert_eq!(out.len(), bytes.len());
        parses(&out);
        for ((kind, before), (_, after)) in frames(&bytes).iter().zip(frames(&out)) {
            prop_assert!(*kind < BODY || *before == after, "bodies are not touched");
        }
        prop_assert_eq!(guarded(&bytes), &out[..], "in one piece");
        prop_assert_eq!(guarded(&out), &out[..], "nothing is left to mend");
    }

    #[test]
    fn rubbish_passes_with_its_length(
        mut bytes in vec(any::<u8>(), 0..400), frames in stream(true), at in any::<prop::sample::Index>(),
        pieces in sizes(), buffers in sizes(),
    ) {
        let mut all = frames;
        all.truncate(at.index(all.len() + 1));
        all.append(&mut bytes);
        prop_assert_eq!(read_in(&all, &pieces, &buffers).len(), all.len());
    }
}

fn hostile_message() -> Vec<u8> {
    let headers = long(
        &[entry(b"gr\xf6\xdfe", b"V"), entry(b"d", &[b"F", &nested(120)[..]].concat())].concat(),
    );
    let properties = [headers, short_string("größ€".as_bytes()), short_string(b"M\xfcller")];
    // The message id, and the type before which a text of three bytes is cut off.
    let properties = header(HEADERS | MESSAGE_ID | (1 << 5), &properties.concat());
    let body = frame(BODY, 1, &[0xff; 4]);
    [deliver(b"c.orders", 7, b"", b"\xc3"), properties, body].concat()
}

#[test]
fn a_frame_may_come_in_any_two_pieces() {
    let bytes = hostile_message();
    let mended = guarded(&bytes);
    assert_ne!(mended, bytes);
    parses(&mended);
    for at in 1..bytes.len() {
        assert_eq!(read_in(&bytes, &[at, bytes.len()], &[bytes.len()]), mended, "{at}");
    }
    for buffer in 1..bytes.len() {
        assert_eq!(read_in(&bytes, &[bytes.len()], &[buffer]), mended, "{buffer}");
    }
}

#[test]
fn what_is_nested_too_deeply_becomes_bytes_and_keeps_them() {
    let bytes = header(HEADERS, &nested(1_500));
    let out = guarded(&bytes);
    let changed: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != out[*at]).collect();
    assert_eq!(changed.len(), 1, "the type of one value");
    assert_eq!((bytes[changed[0]], out[changed[0]]), (b'F', b'x'));
    let (_, properties) = parse_properties(&frames(&out)[0].1[12..]).expect("properties");
    let mut value = AMQPValue::FieldTable(properties.headers().clone().expect("headers"));
    for level in 1..=100 {
        let AMQPValue::FieldTable(table) = &value else { panic!("no table at {level}: {value:?}") };
        value = table.inner().values().next().expect("an entry").clone();
    }
    let kept = AMQPValue::ByteArray(nested(1_400)[4..].to_vec().into());
    assert_eq!(value, kept);
}

#[test]
fn letters_that_are_no_utf8_stay_different() {
    let latin: Vec<u8> = (0xc0..=0xff).collect();
    let mut texts: Vec<_> = latin
        .iter()
        .map(|letter| {
            let out = guarded(&header(MESSAGE_ID, &short_string(&[b'M', *letter, b'a'])));
            let text = out[out.len() - 4..out.len() - 1].to_vec();
            assert!(text.iter().all(u8::is_ascii_graphic), "{text:?}");
            text
        })
        .collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), latin.len());
}

#[test]
fn it_is_said_once_and_then_counted() {
    let mut guard = Guard::default();
    for _ in 0..3 {
        let mut bytes = hostile_message();
        assert_eq!(guard.admit(&mut bytes), bytes.len());
    }
    // Of each message both its method and its properties are mended.
    assert!(guard.report.last.is_some());
    assert_eq!(guard.report.more, 5);
    let origin = Origin::read(&guard.announced.1);
    assert_eq!((origin.consumer, origin.delivery_tag), ("c.orders", 7));
    guard.report.last = Instant::now().checked_sub(QUIET);
    guard.admit(&mut hostile_message());
    assert_eq!(guard.report.more, 1, "it is said again after a while");
}

/// What the guard costs: `cargo test --release -p anybroker-rabbitmq --lib guard -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn measures_messages_of_a_kibibyte() {
    const MESSAGES: u32 = 1_000;
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "0195e1a4-8f6e-7c3a-9b1d-2f4c6e8a0b1c"),
        ("ce-source", "/orders"),
        ("ce-type", "order.created"),
        ("ce-time", "2026-11-24T08:00:00.123456Z"),
        ("ce-schemaversion", "2"),
        ("ce-partitionkey", "customer-4711"),
        ("ce-abclock", "2026-11-24T08:00:00.123456Z"),
    ];
    let headers = attributes
        .map(|(name, text)| entry(name.as_bytes(), &[b"S", &long(text.as_bytes())[..]].concat()));
    let properties = [
        short_string(b"application/json"),
        long(&headers.concat()),
        vec![2],
        short_string(b"0195e1a4-8f6e-7c3a-9b1d-2f4c6e8a0b1c"),
        vec![0; 8],
    ];
    let flags = (1 << 15) | HEADERS | (1 << 12) | MESSAGE_ID | (1 << 6);
    let message = [
        deliver(b"1a2b3c4d.orders", 300, b"orders", b"order.created"),
        header(flags, &properties.concat()),
        frame(BODY, 1, &[b'x'; 1024]),
    ]
    .concat();
    let mut bytes = message.repeat(MESSAGES as usize);
    let mut guard = Guard::default();
    // The quickest of many rounds: others use the machine too.
    let rounds = (0..1_000).map(|_| {
        let started = Instant::now();
        assert_eq!(guard.admit(std::hint::black_box(&mut bytes)), bytes.len());
        started.elapsed() / MESSAGES
    });
    let time = rounds.min().expect("a round");
    println!("{time:?} for a message of {} bytes", message.len());
}
