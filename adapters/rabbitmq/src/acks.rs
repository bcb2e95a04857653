use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anybroker_core::Confirmer;
use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};

use crate::settle::{How, stale};

/// How long a channel stays open after its last acknowledgement. RabbitMQ holds back what comes
/// behind 32 acknowledgements that the queue has not applied yet, and forgets it when the channel
/// closes: what was handled would come again.
pub(crate) const SETTLING: Duration = Duration::from_millis(200);

/// Merges the acknowledgements of one channel.
///
/// One `basic.ack` with `multiple` covers a prefix of tags without a gap; what is finished behind
/// a gap is acknowledged one by one when nothing more is waiting that could fill it.
pub(crate) struct Acks {
    channel: Channel,
    /// The lowest tag that is not finished.
    base: u64,
    /// Which of the tags from `base` on are finished.
    finished: VecDeque<bool>,
    /// Finished by an acknowledgement that is not written yet.
    waiting: Vec<(u64, Option<Confirmer>)>,
    /// On their way to the socket, in the order of the calls.
    writing: Vec<(Write, Vec<Confirmer>)>,
}

type Write = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

impl Acks {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            base: 1,
            finished: VecDeque::new(),
            waiting: Vec::new(),
            writing: Vec::new(),
        }
    }

    pub(crate) fn finish(&mut self, tag: u64, how: How, confirmer: Option<Confirmer>) {
        let channel = self.channel.clone();
        match how {
            How::Ack => self.waiting.push((tag, confirmer)),
            How::Nack => {
                let options = BasicNackOptions { requeue: true, multiple: false };
                self.write(confirmer.into_iter().collect(), async move {
                    channel.basic_nack(tag, options).await
                });
            }
            How::Reject => {
                let options = BasicRejectOptions { requeue: true };
                self.write(confirmer.into_iter().collect(), async move {
                    channel.basic_reject(tag, options).await
                });
            }
            // Never finished, so that no `multiple` covers it.
            How::Leave => return,
        }
        self.mark(tag);
    }

    fn mark(&mut self, tag: u64) {
        let Some(index) = tag.checked_sub(self.base).and_then(|index| usize::try_from(index).ok())
        else {
            return;
        };
        if self.finished.len() <= index {
            self.finished.resize(index + 1, false);
        }
        self.finished[index] = true;
        while self.finished.front() == Some(&true) {
            self.finished.pop_front();
            self.base += 1;
        }
    }

    /// Writes what can be merged, or `all`; answers whether the channel is alive.
    pub(crate) async fn flush(&mut self, all: bool) -> bool {
        let base = self.base;
        // The tag itself must be open at the broker, so that it must be one of these.
        if let Some(last) = self.waiting.iter().map(|(tag, _)| *tag).filter(|tag| *tag < base).max()
        {
            let merged = self.waiting.extract_if(.., |(tag, _)| *tag < base);
            let confirmers = merged.filter_map(|(_, confirmer)| confirmer).collect();
            self.ack(last, true, confirmers);
        }
        if all {
            for (tag, confirmer) in std::mem::take(&mut self.waiting) {
                self.ack(tag, false, confirmer.into_iter().collect());
            }
        }
        let mut alive = true;
        for (write, confirmers) in self.writing.drain(..) {
            let written = write.await;
            alive &= written.is_ok();
            for confirmer in confirmers {
                confirmer.confirm(if written.is_ok() { Ok(()) } else { Err(stale()) });
            }
        }
        alive
    }

    fn ack(&mut self, tag: u64, multiple: bool, confirmers: Vec<Confirmer>) {
        let channel = self.channel.clone();
        self.write(confirmers, async move {
            channel.basic_ack(tag, BasicAckOptions { multiple }).await
        });
    }

    /// Hands a frame to the client, whose queue keeps the order of these calls: a `multiple` must
    /// not overtake the return of a tag that it covers.
    fn write(
        &mut self,
        confirmers: Vec<Confirmer>,
        frame: impl Future<Output = lapin::Result<()>> + Send + 'static,
    ) {
        let mut write: Write = Box::pin(frame);
        if let Some(result) = (&mut write).now_or_never() {
            write = Box::pin(std::future::ready(result));
        }
        self.writing.push((write, confirmers));
    }

    /// Closes the channel, once what was acknowledged is [settled](SETTLING).
    pub(crate) async fn close(self) {
        // It is closed, or closes with its connection, if this fails.
        let _ = self.channel.close(200, "OK".into()).await;
    }
}
