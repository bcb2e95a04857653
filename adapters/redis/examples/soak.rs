//! Stops a consumer's process (SIGSTOP) for minutes while another consumes, lets it go on, and checks
//! what both did: nothing lost, every stale settlement refused, nothing of the other's taken.
//!
//! `cargo xtask soak --minutes 10`

use std::collections::HashSet;
use std::future::poll_fn;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anybroker_core::{
    BoxError, Broker, Consumer, Delivery, Envelope, ErrorKind, Outcome, Outgoing, Queue,
    Subscription,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Tells this program, started once more, which queue to consume.
const CHILD: &str = "ANYBROKER_SOAK_QUEUE";

const LEASE: Duration = Duration::from_secs(10);
/// The child's prefetch; that of the one that goes on has room beside what it takes over.
const PREFETCH: usize = 8;
/// How long the child holds what it takes, and how long both consume before and after the stop.
const HOLD: Duration = Duration::from_secs(1);
const TOGETHER: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::var("ANYBROKER_REDIS_URL")
        .map_err(|_| "ANYBROKER_REDIS_URL is not set: run `cargo xtask soak`")?;
    let broker = anybroker_redis::connect(url.parse()?).await?;
    match std::env::var(CHILD) {
        Ok(queue) => hold(&*broker, Queue::new(queue)).await?,
        Err(_) => {
            let minutes = std::env::args().nth(1).map_or(Ok(10), |minutes| minutes.parse())?;
            soak(&*broker, Duration::from_mins(minutes)).await?;
        }
    }
    Ok(broker.close().await?)
}

fn subscription(queue: Queue) -> Subscription {
    Subscription::queue(queue).lease(LEASE)
}

async fn receive(consumer: &mut Box<dyn Consumer>) -> Result<Vec<Delivery>, BoxError> {
    let mut out = Vec::new();
    poll_fn(|cx| consumer.poll_receive(cx, PREFETCH, &mut out)).await?;
    Ok(out)
}

/// The child: takes messages, holds them for a while, and acknowledges them, until its input ends.
/// It says what it took, and what became of it.
async fn hold(broker: &dyn Broker, queue: Queue) -> Result<(), BoxError> {
    let (end, mut ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        end.send(())
    });
    let mut consumer = broker.consume(&subscription(queue), PREFETCH).await?;
    loop {
        let taken = tokio::select! {
            taken = receive(&mut consumer) => taken?,
            _ = &mut ended => break,
        };
        for delivery in &taken {
            println!("take {}", delivery.envelope().id);
        }
        sleep(HOLD).await;
        for delivery in taken {
            let id = delivery.envelope().id.clone();
            match delivery.settle(Outcome::Ack).await {
                Ok(()) => println!("ok {id}"),
                Err(error) if error.kind() == ErrorKind::StaleDelivery => println!("stale {id}"),
                Err(error) => println!("failed {id} {error}"),
            }
        }
    }
    Ok(consumer.close().await?)
}

/// The child as its parent sees it; it ends with this.
struct Other {
    process: Child,
    lines: mpsc::UnboundedReceiver<String>,
    taken: HashSet<String>,
    acknowledged: HashSet<String>,
    stale: HashSet<String>,
}

impl Other {
    fn start(queue: &str) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        let command = command.env(CHILD, queue).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let output = process.stdout.take().ok_or("no output")?;
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let [taken, acknowledged, stale] = [(); 3].map(|()| HashSet::new());
        Ok(Self { process, lines, taken, acknowledged, stale })
    }

    /// Notes the next thing it says.
    async fn follow(&mut self) -> Result<(), BoxError> {
        let line = self.lines.recv().await.ok_or("the other consumer ended")?;
        let (what, id) = line.split_once(' ').ok_or("half a line")?;
        match what {
            "take" => self.taken.insert(id.to_owned()),
            "ok" => self.taken.remove(id) && self.acknowledged.insert(id.to_owned()),
            "stale" => self.taken.remove(id) && self.stale.insert(id.to_owned()),
            _ => return Err(line.into()),
        };
        Ok(())
    }

    fn signal(&self, name: &str) -> Result<(), BoxError> {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill {name}: {sent}").into()) }
    }

    /// Stops it while it holds something; answers what.
    async fn stop(&mut self) -> Result<HashSet<String>, BoxError> {
        loop {
            // Soon after it took something, so that it has not settled it yet.
            while !self.taken.is_empty() {
                self.follow().await?;
            }
            while self.taken.is_empty() {
                self.follow().await?;
            }
            self.signal("-STOP")?;
            // What it said before is still on its way here.
            while let Ok(followed) = timeout(HOLD, self.follow()).await {
                followed?;
            }
            if !self.taken.is_empty() {
                return Ok(self.taken.clone());
            }
            self.signal("-CONT")?;
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Publishes until told to end; answers what was confirmed.
async fn publish(
    producer: std::sync::Arc<dyn anybroker_core::Producer>,
    queue: Queue,
    mut end: oneshot::Receiver<()>,
) -> Result<HashSet<String>, BoxError> {
    let mut pace = interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirmed = HashSet::new();
    for number in 0_u64.. {
        pace.tick().await;
        if end.try_recv().is_ok() {
            break;
        }
        let id = number.to_string();
        let envelope = Envelope::new("soak.message", "{}").with_id(&*id);
        producer.send(Outgoing::new(queue.clone(), envelope)).await?;
        confirmed.insert(id);
    }
    Ok(confirmed)
}

/// The consumer that goes on.
struct Ours {
    consumer: Box<dyn Consumer>,
    acknowledged: HashSet<String>,
    /// What was taken over from the other one, to be held until that has tried to settle it.
    kept: Vec<Delivery>,
    renewed: Instant,
}

impl Ours {
    /// Consumes for a while; keeps what is among `theirs`.
    async fn consume(
        &mut self,
        other: &mut Other,
        time: Duration,
        theirs: &HashSet<String>,
    ) -> Result<(), BoxError> {
        let end = Instant::now() + time;
        let (settler, lease) = self.consumer.lease().ok_or("no lease")?;
        while Instant::now() < end {
            if self.renewed.elapsed() > lease / 4 {
                let tags: Vec<_> = self.kept.iter().map(Delivery::tag).collect();
                settler.renew(&tags).await?;
                self.renewed = Instant::now();
            }
            let received = tokio::select! {
                received = receive(&mut self.consumer) => received?,
                followed = other.follow() => { followed?; continue }
                () = sleep(lease / 8) => continue,
            };
            for delivery in received {
                let id = delivery.envelope().id.clone();
                if theirs.contains(&id) {
                    self.kept.push(delivery);
                } else {
                    delivery.settle(Outcome::Ack).await?;
                    self.acknowledged.insert(id);
                }
            }
        }
        Ok(())
    }
}

async fn soak(broker: &dyn Broker, stop: Duration) -> Result<(), BoxError> {
    let name = format!("soak-{:016x}", fastrand::u64(..));
    let queue = Queue::new(name.clone());
    let consumer = broker.consume(&subscription(queue.clone()), 8 * PREFETCH).await?;
    let mut ours =
        Ours { consumer, acknowledged: HashSet::new(), kept: Vec::new(), renewed: Instant::now() };
    let mut other = Other::start(&name)?;
    let (end, ended) = oneshot::channel();
    let publishing = tokio::spawn(publish(broker.producer(), queue, ended));
    let nothing = HashSet::new();
    ours.consume(&mut other, TOGETHER, &nothing).await?;

    let theirs = other.stop().await?;
    println!("stopped for {stop:?}, with {} messages in its hands", theirs.len());
    ours.consume(&mut other, stop, &theirs).await?;
    let kept: HashSet<_> = ours.kept.iter().map(|kept| kept.envelope().id.clone()).collect();
    check(!kept.is_empty(), "nothing of what it held was taken over")?;

    other.signal("-CONT")?;
    let patience = Instant::now() + PATIENCE;
    // What it had acknowledged when it was stopped, and could not say any more, is not in our hands.
    while !theirs.is_subset(&(&other.stale | &other.acknowledged)) {
        check(Instant::now() < patience, "it did not settle what it held")?;
        ours.consume(&mut other, HOLD, &theirs).await?;
    }
    check(kept.is_subset(&other.stale), "a stale settlement was accepted")?;
    for delivery in std::mem::take(&mut ours.kept) {
        let id = delivery.envelope().id.clone();
        // An error here means that it was taken away.
        delivery.settle(Outcome::Ack).await?;
        ours.acknowledged.insert(id);
    }
    ours.consume(&mut other, TOGETHER, &nothing).await?;

    let _ = end.send(());
    let confirmed = publishing.await??;
    let patience = Instant::now() + PATIENCE;
    let handled = |ours: &Ours, other: &Other, id: &String| {
        ours.acknowledged.contains(id) || other.acknowledged.contains(id)
    };
    while !confirmed.iter().all(|id| handled(&ours, &other, id)) {
        check(Instant::now() < patience, "some messages are lost")?;
        ours.consume(&mut other, HOLD, &nothing).await?;
    }
    check(ours.acknowledged.is_disjoint(&other.acknowledged), "a message was acknowledged twice")?;
    println!(
        "published {} · acknowledged {} and {} by the one that was stopped · stale and refused {} · \
         lost 0 · twice 0",
        confirmed.len(),
        ours.acknowledged.len(),
        other.acknowledged.len(),
        other.stale.len(),
    );
    drop(other.process.stdin.take());
    ours.consumer.close().await?;
    Ok(())
}

fn check(holds: bool, otherwise: &'static str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
