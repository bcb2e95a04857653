//! Looks at what the server sends before the client does.
//!
//! The client ends the process over a header of deeply nested tables, and the connection over a short
//! string that is no UTF-8, at each delivery again. Whoever may write to a queue could stop all that
//! share the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_io::{AsyncRead, AsyncWrite};

use crate::frames::{
    DELIVER, GET_OK, HEADER, METHOD, Mended, RETURN, mend_header, mend_method, method,
};

/// Type, channel and size of a frame, before its payload; after it comes one byte more.
const PREFIX: usize = 7;
/// Frames whose payload is not looked at.
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// By how much the room for a frame that comes in parts grows at most, whatever its size claims.
const STEP: usize = 64 * 1024;
/// How often the log says that something was mended.
const QUIET: Duration = Duration::from_secs(30);

/// A connection whose inbound frames are mended.
///
/// Most are looked at where the client reads them to. Only the part of a frame at the end of a read
/// waits here until the rest has come.
pub(crate) struct Guarded<S> {
    stream: S,
    guard: Guard,
}

#[derive(Default)]
struct Guard {
    /// How many bytes to come need not be looked at.
    passing: u64,
    /// A frame that has to be looked at, and is not complete; or is, and being handed out.
    held: Vec<u8>,
    /// How much of it was handed out; `None` until it may be.
    out: Option<usize>,
    /// Channel and payload of the last method after which a message comes. RabbitMQ sends a
    /// message's frames without another one in between.
    announced: (u16, Vec<u8>),
    report: Report,
}

/// What the first bytes of a frame say.
enum Start {
    /// They are too few.
    Short,
    /// So many bytes from here on need not be looked at.
    Pass(u64),
    /// So many bytes are a frame that has to be looked at.
    Look(usize),
}

impl Start {
    fn of(bytes: &[u8]) -> Self {
        match *bytes {
            [] => Self::Short,
            [METHOD | HEADER | BODY | HEARTBEAT, ref rest @ ..] if rest.len() < PREFIX - 1 => {
                Self::Short
            }
            [kind @ (METHOD | HEADER | BODY | HEARTBEAT), _, _, a, b, c, d, ..] => {
                let size = u64::from(u32::from_be_bytes([a, b, c, d])) + 1 + PREFIX as u64;
                match usize::try_from(size) {
                    Ok(size) if kind <= HEADER => Self::Look(size),
                    _ => Self::Pass(size),
                }
            }
            // No AMQP 0-9-1: the client says so, and leaves.
            _ => Self::Pass(u64::MAX),
        }
    }
}

impl Guard {
    /// Looks at bytes as they have come, mends them, and returns how many of them may be handed out.
    /// The rest is held.
    fn admit(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            if self.passing == 0 {
                match Start::of(rest) {
                    Start::Pass(count) => self.passing = count,
                    Start::Look(size) if size <= rest.len() => {
                        self.look(&mut rest[..size]);
                        at += size;
                        continue;
                    }
                    Start::Short | Start::Look(_) => {
                        self.held.extend_from_slice(rest);
                        break;
                    }
                }
            }
            let passed = usize::try_from(self.passing).unwrap_or(usize::MAX).min(rest.len());
            self.passing -= passed as u64;
            at += passed;
        }
        at
    }

    /// How many bytes of the held frame to read next.
    fn missing(&self) -> usize {
        match Start::of(&self.held) {
            Start::Look(size) => (size - self.held.len()).min(STEP),
            Start::Short | Start::Pass(_) => PREFIX - self.held.len(),
        }
    }

    /// After the held frame has grown.
    fn grown(&mut self) {
        match Start::of(&self.held) {
            Start::Look(size) if size == self.held.len() => {
                let mut held = std::mem::take(&mut self.held);
                self.look(&mut held);
                self.held = held;
                self.out = Some(0);
            }
            Start::Pass(count) => {
                self.passing = count - self.held.len() as u64;
                self.out = Some(0);
            }
            Start::Short | Start::Look(_) => {}
        }
    }

    /// Hands out what is held and was looked at.
    fn hand_out(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let start = self.out?;
        let count = buffer.len().min(self.held.len() - start);
        buffer[..count].copy_from_slice(&self.held[start..start + count]);
        self.out = Some(start + count);
        if start + count == self.held.len() {
            self.held.clear();
            self.out = None;
        }
        Some(count)
    }

    fn look(&mut self, frame: &mut [u8]) {
        let channel = u16::from_be_bytes([frame[1], frame[2]]);
        let is_method = frame[0] == METHOD;
        let end = frame.len() - 1;
        let payload = &mut frame[PREFIX..end];
        let mended = if is_method { mend_method(payload) } else { mend_header(payload) };
        if is_method {
            let (announcing, kept) = &mut self.announced;
            *announcing = channel;
            kept.clear();
            if matches!(method(payload), Some(DELIVER | GET_OK | RETURN)) {
                kept.extend_from_slice(payload);
            }
        }
        if mended != Mended::default() {
            let (announcing, kept) = &self.announced;
            let kept = if *announcing == channel { &kept[..] } else { &[] };
            self.report.mended(mended, &Origin::read(kept));
        }
    }
}

/// Which message something was mended of, as far as its method says so.
#[derive(Default)]
struct Origin<'a> {
    consumer: &'a str,
    delivery_tag: u64,
    exchange: &'a str,
    routing_key: &'a str,
}

impl<'a> Origin<'a> {
    fn read(payload: &'a [u8]) -> Self {
        let mut origin = Self::default();
        // What is missing stays empty.
        let _ = origin.fill(payload);
        origin
    }

    fn fill(&mut self, payload: &'a [u8]) -> Option<()> {
        let number = method(payload)?;
        let mut rest = &payload[4..];
        if number == RETURN {
            rest = rest.get(2..)?;
            short(&mut rest)?;
        } else {
            if number == DELIVER {
                self.consumer = short(&mut rest)?;
            }
            let (tag, behind) = rest.split_first_chunk()?;
            self.delivery_tag = u64::from_be_bytes(*tag);
            rest = behind.get(1..)?;
        }
        self.exchange = short(&mut rest)?;
        self.routing_key = short(&mut rest)?;
        Some(())
    }
}

fn short<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, behind) = rest.split_first()?;
    let (text, behind) = behind.split_at_checked(usize::from(*length))?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

/// Says what was mended, and counts what came soon after it.
#[derive(Default)]
struct Report {
    last: Option<Instant>,
    more: u64,
}

impl Report {
    fn mended(&mut self, mended: Mended, origin: &Origin<'_>) {
        if self.last.is_some_and(|last| last.elapsed() < QUIET) {
            self.more += 1;
            return;
        }
        let Mended { texts, nested } = mended;
        let Origin { consumer, delivery_tag, exchange, routing_key } = *origin;
        let unsaid = std::mem::take(&mut self.more);
        tracing::warn!(
            consumer,
            delivery_tag,
            exchange,
            routing_key,
            texts,
            nested,
            unsaid,
            "a message has properties that the client cannot read: names and properties that are no \
             UTF-8 (`texts`) get other letters, and what is nested more than 100 deep (`nested`) \
             becomes an array of bytes; its payload is kept",
        );
        self.last = Some(Instant::now());
    }
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, guard: Guard::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, guard } = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if let Some(count) = guard.hand_out(buffer) {
                return Poll::Ready(Ok(count));
            }
            if guard.held.is_empty() {
                let count = ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
                let admitted = guard.admit(&mut buffer[..count]);
                if admitted > 0 || count == 0 {
                    return Poll::Ready(Ok(admitted));
                }
                continue;
            }
            let start = guard.held.len();
            guard.held.resize(start + guard.missing(), 0);
            let read = Pin::new(&mut *stream).poll_read(cx, &mut guard.held[start..]);
            let count = if let Poll::Ready(Ok(count)) = read { count } else { 0 };
            guard.held.truncate(start + count);
            match ready!(read)? {
                // The client learns that a frame was cut off.
                0 => guard.out = Some(0),
                _ => guard.grown(),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
