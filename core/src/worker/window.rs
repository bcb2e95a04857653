use std::time::Duration;

use tokio::time::Instant;

use crate::{Capabilities, Subscription};

/// How much work a loop reads ahead, in time: what waits in one process is kept from the handlers of
/// the others, and starts late if the handlers of this one become slow.
const HORIZON: Duration = Duration::from_millis(100);

/// How often a loop that reads ahead looks whether its handlers are still as fast.
const LOOK: Duration = Duration::from_secs(1);

/// How many handlers must have finished for their pace to be known.
const SAMPLE: usize = 32;

/// The most bytes to read ahead, by the average size of the latest messages. After so many bytes the
/// loop looks at the sizes again.
const BYTES: usize = 16 * 1024 * 1024;

/// How many deliveries a loop asks its consumer for.
///
/// That is one for each handler, room for the retries that wait in the process, and a read-ahead that
/// grows only while handlers are fast: at most what they finish in a tenth of a second.
///
/// In an ordered subscription, and where a partition belongs to one process, a loop always asks for
/// the most: whatever it leaves goes to nobody else meanwhile, and behind a key that is held back it
/// must find other keys. Where a consumer cannot change its prefetch, a loop asks for twice as many
/// deliveries as it has handlers, waiting retries included.
///
/// In an ordered subscription where a consumer cannot change its prefetch, a loop asks for
/// as many as if it had all handlers of the subscription. What a dead consumer held goes to the next
/// one in line. A smaller one would leave some of it, and if that one dies too, what it held comes
/// back behind what it left. So all that wait in line must ask for the same number, and how many
/// loops share the handlers depends on the threads of each machine.
pub(super) struct Window {
    concurrency: usize,
    kind: Kind,
    /// How many are read ahead.
    ahead: usize,
    /// How many waiting retries there is room for.
    parked: usize,
    finished: usize,
    received: usize,
    bytes: usize,
    /// Since when these three are counted.
    since: Option<Instant>,
    /// For how long handlers had nothing to do because nothing came, since then and in sum.
    idle: Duration,
    /// How many have nothing to do now, and since when.
    starved: Option<(u32, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Grows and shrinks.
    Elastic,
    /// The consumer keeps the prefetch that it began with.
    Fixed,
    /// Nobody else could handle what is left: it asks for as many as so many handlers can hold.
    Whole(usize),
}

impl Window {
    /// The window of a loop with so many of the subscription's handlers.
    pub(super) fn new(
        concurrency: usize,
        handlers: usize,
        subscription: &Subscription,
        capabilities: &Capabilities,
    ) -> Self {
        let kind = if !capabilities.shares_partitions {
            Kind::Whole(concurrency)
        } else if subscription.is_ordered() {
            Kind::Whole(if capabilities.resizes_prefetch { concurrency } else { handlers })
        } else if capabilities.resizes_prefetch {
            Kind::Elastic
        } else {
            Kind::Fixed
        };
        Self::of(concurrency, kind)
    }

    fn of(concurrency: usize, kind: Kind) -> Self {
        Self {
            concurrency,
            kind,
            ahead: 0,
            parked: 0,
            finished: 0,
            received: 0,
            bytes: 0,
            since: None,
            idle: Duration::ZERO,
            starved: None,
        }
    }

    /// How many retries may wait beside the handlers.
    pub(super) fn most_parked(&self) -> usize {
        if self.kind == Kind::Fixed { self.concurrency } else { parked_beside(self.concurrency) }
    }

    /// How many deliveries may be held at once: running, queued, in lanes and parked.
    pub(super) fn most_held(&self) -> usize {
        self.concurrency + self.most_parked()
    }

    /// How many deliveries to ask for.
    pub(super) fn wanted(&self) -> usize {
        let most = self.concurrency + self.most_held();
        match self.kind {
            Kind::Elastic => (self.concurrency + self.parked + self.ahead).min(most),
            Kind::Fixed => self.most_held(),
            Kind::Whole(handlers) => 2 * handlers + parked_beside(handlers),
        }
    }

    /// Keeps room for so many retries that wait. The room grows in powers of two and goes when no
    /// retry waits, since asking for another number costs some brokers a round trip.
    pub(super) fn set_parked(&mut self, parked: usize) {
        if parked > self.parked {
            self.parked = parked.next_power_of_two();
        } else if parked == 0 {
            self.parked = 0;
        }
    }

    /// Notes what came. It reads the clock once between two looks.
    pub(super) fn receive(&mut self, deliveries: usize, bytes: usize) {
        self.starve(0);
        self.received += deliveries;
        self.bytes += bytes;
        if self.since.is_none() && self.kind == Kind::Elastic {
            self.since = Some(Instant::now());
        }
    }

    /// Notes how many handlers are free while nothing comes. That says nothing of how fast they are:
    /// with a slow broker, and nothing read ahead, they wait most of the time.
    pub(super) fn starve(&mut self, free: usize) {
        let free =
            if self.kind == Kind::Elastic { u32::try_from(free).unwrap_or(u32::MAX) } else { 0 };
        if self.starved.is_none() && free == 0 {
            return;
        }
        let now = Instant::now();
        self.count_idle(now);
        self.starved = (free > 0).then_some((free, now));
    }

    fn count_idle(&mut self, now: Instant) {
        if let (Some((free, since)), Some(counted)) = (&mut self.starved, self.since) {
            self.idle += now.saturating_duration_since((*since).max(counted)) * *free;
            *since = now;
        }
    }

    pub(super) fn finish(&mut self) {
        self.finished += 1;
    }

    /// Whether so much has happened that it is time to [`look`](Self::look). While the read-ahead is
    /// the largest, only the time and the bytes decide, so that the fastest handlers cost the fewest
    /// looks.
    pub(super) fn is_sampled(&self) -> bool {
        self.kind == Kind::Elastic
            && if self.ahead < self.most_held() {
                self.finished >= SAMPLE.max(self.concurrency)
            } else {
                self.bytes >= BYTES
            }
    }

    /// When to look the next time, however few have finished.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.since.filter(|_| self.ahead > 0).map(|since| since + LOOK)
    }

    /// Looks how fast handlers were since the last time.
    pub(super) fn look(&mut self, now: Instant) {
        self.count_idle(now);
        let elapsed = self.since.map_or(LOOK, |since| now - since).as_nanos();
        let concurrency = self.concurrency as u128;
        let busy = (elapsed * concurrency).saturating_sub(self.idle.as_nanos()).max(1);
        let in_time = HORIZON.as_nanos() * concurrency * self.finished as u128 / busy;
        let in_time = usize::try_from(in_time).unwrap_or(usize::MAX);
        let average = self.bytes.checked_div(self.received);
        let in_bytes = average.map_or(self.ahead, |average| BYTES / average.max(1));
        let most = self.most_held();
        let ahead = in_time.min(in_bytes).min(most);
        // In steps, as handlers are never equally fast.
        if ahead == most || ahead < self.ahead.div_ceil(2) {
            self.ahead = ahead;
        } else if ahead > self.ahead {
            self.ahead = self.ahead.max(1 << ahead.ilog2());
        }
        self.since = (self.finished > 0).then_some(now);
        (self.finished, self.received, self.bytes, self.idle) = (0, 0, 0, Duration::ZERO);
    }
}

/// How many retries may wait beside so many handlers.
fn parked_beside(handlers: usize) -> usize {
    (4 * handlers).min(256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// What it wants after so many finished within this time, each of so many bytes.
    async fn after(window: &mut Window, finished: usize, time: Duration, bytes: usize) -> usize {
        window.receive(finished, finished * bytes);
        (0..finished).for_each(|_| window.finish());
        tokio::time::advance(time).await;
        window.look(Instant::now());
        window.wanted()
    }

    #[tokio::test(start_paused = true)]
    async fn it_reads_ahead_what_handlers_finish_in_a_tenth_of_a_second() {
        let mut window = Window::of(16, Kind::Elastic);
        assert_eq!(window.wanted(), 16);
        assert_eq!(after(&mut window, 16, Duration::from_secs(2), 100).await, 16);
        assert_eq!(after(&mut window, 32, Duration::from_millis(200), 100).await, 32);
        assert_eq!(after(&mut window, 1000, 10 * MILLISECOND, 100).await, 16 + 80);
        assert_eq!(after(&mut window, 30, Duration::from_secs(1), 100).await, 16 + 3);
        assert!(window.next_look().is_some());
        assert_eq!(after(&mut window, 0, Duration::from_secs(1), 100).await, 16);
        assert!(window.next_look().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_which_nothing_comes_does_not_make_handlers_slow() {
        for (busy, wanted) in [(MILLISECOND, 2 + 10), (2_000 * MILLISECOND, 2)] {
            let mut window = Window::of(2, Kind::Elastic);
            for _ in 0..SAMPLE {
                window.receive(1, 100);
                window.starve(1);
                tokio::time::advance(busy).await;
                window.finish();
                // A slow answer.
                window.starve(2);
                tokio::time::advance(500 * MILLISECOND).await;
            }
            window.look(Instant::now());
            assert_eq!(window.wanted(), wanted, "{busy:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_are_not_read_ahead() {
        let mut window = Window::of(4, Kind::Elastic);
        assert_eq!(after(&mut window, 1000, MILLISECOND, 8 * 1024 * 1024).await, 4 + 2);
        assert_eq!(after(&mut window, 1000, MILLISECOND, 17 * 1024 * 1024).await, 4);
    }

    #[test]
    fn retries_that_wait_get_room_of_their_own() {
        let mut window = Window::of(2, Kind::Elastic);
        for (parked, wanted) in [(1, 3), (3, 6), (2, 6), (0, 2)] {
            window.set_parked(parked);
            assert_eq!(window.wanted(), wanted, "{parked} wait");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_largest_read_ahead_only_bytes_and_time_ask_for_a_look() {
        let mut window = Window::of(16, Kind::Elastic);
        assert_eq!(after(&mut window, 1000, 10 * MILLISECOND, 100).await, 16 + 80);
        (0..1000).for_each(|_| window.finish());
        assert!(!window.is_sampled());
        window.receive(1, BYTES);
        assert!(window.is_sampled());
    }

    #[test]
    fn a_consumer_that_keeps_its_prefetch_is_asked_for_twice_the_handlers() {
        let mut window = Window::of(3, Kind::Fixed);
        for parked in [0, 1, 3, 0] {
            window.set_parked(parked);
            assert_eq!((window.wanted(), window.most_parked()), (6, 3), "{parked} wait");
        }
    }

    #[test]
    fn consumers_in_line_for_a_partition_ask_for_the_same_number() {
        let wanted = |share: usize, handlers: usize, resizes: bool| {
            let queue = Queue::new("q").ordered().partitions(4);
            let mut capabilities = Capabilities::new("test", 1);
            capabilities.resizes_prefetch = resizes;
            Window::new(share, handlers, &Subscription::queue(queue), &capabilities).wanted()
        };
        for share in [21, 22, 32, 64] {
            assert_eq!(wanted(share, 64, false), 64 + 64 + 256, "a loop with {share} handlers");
        }
        assert_eq!(wanted(16, 64, true), 16 + 16 + 64);
    }
}
