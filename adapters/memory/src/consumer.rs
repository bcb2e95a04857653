use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anybroker_core::{Consumer, Delivery, Result, Settler, Subscription};
use async_trait::async_trait;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::connection::Connection;
use crate::destination::StoredDestination;
use crate::entry::Entry;
use crate::in_flight::InFlight;
use crate::settler::MemorySettler;
use crate::signals::Signals;

/// Takes the messages of one group, as one of its competing consumers.
pub(crate) struct MemoryConsumer {
    settler: Arc<MemorySettler>,
    /// The number by which the group knows it.
    number: u64,
    prefetch: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// Empty between polls; kept for its memory.
    taken: Vec<Entry>,
}

impl MemoryConsumer {
    pub(crate) fn new(
        connection: Arc<Connection>,
        destination: Arc<StoredDestination>,
        group: usize,
        subscription: Subscription,
        prefetch: usize,
    ) -> Self {
        let in_flight = Arc::new(InFlight::new(connection, subscription.lease_time()));
        let number = destination.with(group, |group, _| group.join(in_flight.clone()));
        Self {
            settler: Arc::new(MemorySettler { destination, group, subscription, in_flight }),
            number,
            prefetch: prefetch.max(1),
            timer: None,
            taken: Vec::new(),
        }
    }

    /// Appends what is ready; otherwise waits for it, and answers the time until which it may.
    fn take(&mut self, cx: &Context<'_>, max: usize, out: &mut Vec<Delivery>) -> Result<Taken> {
        let MemorySettler { destination, in_flight, .. } = &*self.settler;
        let now = Instant::now();
        let mut signals = Signals::default();
        let mut groups = destination.lock();
        in_flight.connection.check_open()?;
        let group = groups.group(self.settler.group);
        group.advance(now, &mut signals);

        let mut table = in_flight.lock();
        let room = self.prefetch.saturating_sub(table.len());
        group.take(room.min(max), &mut self.taken);
        if !self.taken.is_empty() {
            let expires = now + in_flight.lease;
            group.lease(expires);
            groups.admit(&mut signals);
            drop(groups);
            out.reserve(self.taken.len());
            for entry in self.taken.drain(..) {
                let (envelope, hop) = (entry.envelope.clone(), entry.hop.clone());
                let returned = entry.returned;
                let tag = table.insert(entry, expires);
                out.push(Delivery::new(envelope, hop, returned, tag, self.settler.clone()));
            }
            return Ok(Taken::Some);
        }
        if room == 0 {
            table.block(cx.waker(), &mut signals);
        } else {
            group.wait(self.number, cx.waker(), &mut signals);
        }
        Ok(Taken::NoneUntil(group.next_deadline()))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, end: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        timer.as_mut().poll(cx)
    }
}

enum Taken {
    Some,
    NoneUntil(Option<Instant>),
}

#[async_trait]
impl Consumer for MemoryConsumer {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<Delivery>,
    ) -> Poll<Result<()>> {
        if max == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match self.take(cx, max, out) {
                Err(error) => return Poll::Ready(Err(error.operation("receive"))),
                Ok(Taken::Some) => return Poll::Ready(Ok(())),
                Ok(Taken::NoneUntil(None)) => return Poll::Pending,
                // Other consumers' messages may have come first: look again, as often as the time
                // comes while it is being waited for.
                Ok(Taken::NoneUntil(Some(end))) => std::task::ready!(self.poll_timer(cx, end)),
            }
        }
    }

    fn set_prefetch(&mut self, prefetch: usize) {
        self.prefetch = prefetch.max(1);
    }

    fn lease(&self) -> Option<(Arc<dyn Settler>, Duration)> {
        Some((self.settler.clone(), self.settler.in_flight.lease))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let MemorySettler { destination, group, in_flight, .. } = &*self.settler;
        destination.with(*group, |group, signals| group.leave(self.number, in_flight, signals));
    }
}

impl fmt::Debug for MemoryConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConsumer").field("settler", &self.settler).finish_non_exhaustive()
    }
}
