//! Mends what the client's parser cannot read in one frame of AMQP 0-9-1, in place.
//!
//! Every length stays as it is, and with it the frame. The grammar is that of the protocol with
//! RabbitMQ's types. RabbitMQ refuses what does not keep to it when it is published, but it checks
//! neither how deep tables are nested nor whether a short string is UTF-8.

/// A table or array that is nested deeper becomes an array of bytes. RabbitMQ's client for C has
/// the same limit. The parser of lapin calls itself at each level, and overflows the stack of its
/// thread from about 1,000 on.
const DEEPEST: usize = 100;

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;

/// `basic.deliver`, `basic.get-ok` and `basic.return`: after each of them comes a message.
pub(crate) const DELIVER: (u16, u16) = (60, 60);
pub(crate) const GET_OK: (u16, u16) = (60, 71);
pub(crate) const RETURN: (u16, u16) = (60, 50);

/// How much was mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Short strings that are no UTF-8.
    pub(crate) texts: u32,
    /// Tables and arrays that are nested too deeply.
    pub(crate) nested: u32,
}

/// Class and number of a method.
pub(crate) fn method(payload: &[u8]) -> Option<(u16, u16)> {
    let [class, class_low, method, method_low, ..] = *payload else { return None };
    Some((u16::from_be_bytes([class, class_low]), u16::from_be_bytes([method, method_low])))
}

/// Mends the payload of a method frame.
pub(crate) fn mend_method(payload: &mut [u8]) -> Mended {
    let number = method(payload);
    let mut walk = Walk::new(payload, 4);
    let _ = match number {
        Some(DELIVER) => walk.short().and_then(|()| walk.skip(9)).and_then(|()| walk.shorts(2)),
        Some(GET_OK) => walk.skip(9).and_then(|()| walk.shorts(2)),
        Some(RETURN) => walk.skip(2).and_then(|()| walk.shorts(3)),
        // `connection.close` and `channel.close`, whose text may name what a user called it, and is
        // cut off wherever it is too long.
        Some((10, 50) | (20, 40)) => walk.skip(2).and_then(|()| walk.short()),
        // `connection.blocked` and `queue.declare-ok`.
        Some((10, 60) | (50, 11)) => walk.short(),
        _ => None,
    };
    walk.mended
}

/// Mends the payload of a content header, which has the properties of a message.
pub(crate) fn mend_header(payload: &mut [u8]) -> Mended {
    const FLAGS: usize = 12;
    let Some(&[high, low]) = payload.get(FLAGS..FLAGS + 2) else { return Mended::default() };
    let mut walk = Walk::new(payload, FLAGS + 2);
    // There is nothing to mend behind what is cut off.
    let _ = walk.properties(u16::from_be_bytes([high, low]));
    walk.mended
}

/// A way through a payload. Each step is `None` where the payload ends too early.
struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
    mended: Mended,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a mut [u8], at: usize) -> Self {
        Self { bytes, at, mended: Mended::default() }
    }

    fn properties(&mut self, flags: u16) -> Option<()> {
        const HEADERS: u16 = 13;
        // From the first to the last: how many bytes one has, if it is no short string.
        const FIXED: [(u16, usize); 3] = [(12, 1), (11, 1), (6, 8)];
        for bit in (2..=15).rev().filter(|bit| flags & (1 << bit) != 0) {
            match FIXED.iter().find(|(fixed, _)| *fixed == bit) {
                Some((_, size)) => self.skip(*size)?,
                None if bit == HEADERS => {
                    let end = self.container(self.bytes.len())?;
                    // A malformed table harms only itself: its end is known.
                    let _ = self.entries(true, end, 1);
                    self.at = end;
                }
                None => self.short()?,
            }
        }
        Some(())
    }

    /// The entries of a table, which are named, or of an array.
    fn entries(&mut self, named: bool, end: usize, depth: usize) -> Option<()> {
        while self.at < end {
            if named {
                self.short()?;
            }
            self.value(end, depth)?;
        }
        (self.at == end).then_some(())
    }

    fn value(&mut self, end: usize, depth: usize) -> Option<()> {
        let kind_at = self.at;
        let kind = *self.bytes.get(kind_at)?;
        self.at += 1;
        match kind {
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'S' | b'x' => {
                self.at = self.container(end)?;
                Some(())
            }
            b'F' | b'A' => {
                let inner = self.container(end)?;
                let is_read =
                    depth < DEEPEST && self.entries(kind == b'F', inner, depth + 1).is_some();
                if !is_read {
                    // An array of bytes is laid out alike: its length, and what it contains.
                    self.bytes[kind_at] = b'x';
                    self.mended.nested += 1;
                }
                self.at = inner;
                Some(())
            }
            _ => None,
        }
    }

    /// Reads a length of four bytes, and returns where what it counts ends.
    fn container(&mut self, limit: usize) -> Option<usize> {
        let start = self.at.checked_add(4)?;
        let length = self.bytes.get(self.at..start)?.try_into().map(u32::from_be_bytes).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.at = start;
        (end <= limit).then_some(end)
    }

    fn shorts(&mut self, count: usize) -> Option<()> {
        (0..count).try_for_each(|_| self.short())
    }

    fn short(&mut self) -> Option<()> {
        let length = usize::from(*self.bytes.get(self.at)?);
        let start = self.at + 1;
        self.at = start + length;
        let text = self.bytes.get_mut(start..self.at)?;
        if !text.is_ascii() && replace_invalid(text) {
            self.mended.texts += 1;
        }
        Some(())
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.bytes.len()).then_some(())
    }
}

/// Replaces each byte that is no UTF-8, and returns whether there was one.
///
/// Each becomes another printable character, as far as there are enough: two ids that differ only in
/// letters of Latin-1 must not become one, or the second message is taken for a copy of the first.
fn replace_invalid(text: &mut [u8]) -> bool {
    let mut at = 0;
    let mut any = false;
    while let Err(error) = std::str::from_utf8(&text[at..]) {
        let start = at + error.valid_up_to();
        let end = error.error_len().map_or(text.len(), |length| start + length);
        for byte in &mut text[start..end] {
            *byte = b'!' + (*byte & 0x7f) % (b'~' - b'!' + 1);
        }
        at = end;
        any = true;
    }
    any
}
