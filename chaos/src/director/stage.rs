use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anybroker::{BoxError, Broker};
use anybroker_testkit::history::{DIRECTOR, Event, Gone, Harm, Writer};
use anybroker_testkit::{Child, Proxy};
use tokio::time::{Instant, sleep};

use super::{END, Run};
use crate::child::{ROLE, Role, Work};
use crate::scenario::Part;
use crate::server::Site;

/// All that takes part: the broker, the ways to it, and the processes.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) site: tokio::sync::Mutex<Site>,
    seats: Mutex<BTreeMap<String, Seat>>,
    notes: Arc<Writer>,
    /// What is being disturbed, by number.
    going_on: Mutex<BTreeMap<u64, String>>,
    next: AtomicU64,
    folder: PathBuf,
    parts: Vec<Part>,
    seed: u64,
    per_second: u32,
    /// Where the broker is reached for looking.
    url: String,
}

/// The place of a process, which is another process after each kill.
#[derive(Debug)]
struct Seat {
    /// Its own way to the broker, which all processes in this place have.
    way: Option<Proxy>,
    url: String,
    child: Option<Child>,
    /// How many processes were in this place.
    count: u64,
    /// Whether somebody does something to it, so that its end is no surprise.
    is_held: bool,
}

pub(super) const CONSUMER: &str = "consumer";
pub(super) const PUBLISHER: &str = "publisher";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// Declares the groups, and starts all processes.
    pub(super) async fn build(run: Run) -> Result<Self, BoxError> {
        let Run { site, wish, parts, consumers, publishers, per_second, folder, .. } = run;
        let notes = Arc::new(Writer::open(&folder, DIRECTOR)?);
        notes.note_stalls();
        let url = match site.shared() {
            Some(shared) => site.with_options(shared.url()),
            None => site.with_options(&site.url),
        };
        let mut seats = BTreeMap::new();
        let names = |kind: &'static str, count| (1..=count).map(move |n| format!("{kind}-{n}"));
        for name in names(CONSUMER, consumers).chain(names(PUBLISHER, publishers)) {
            let (way, url) = site.way().await?;
            seats.insert(name, Seat { way, url, child: None, count: 0, is_held: false });
        }
        let stage = Self {
            site: tokio::sync::Mutex::new(site),
            seats: Mutex::new(seats),
            notes,
            going_on: Mutex::default(),
            next: AtomicU64::new(1),
            folder,
            parts,
            seed: wish.seed,
            per_second,
            url,
        };
        let broker = stage.connect().await?;
        for subscription in stage.parts.iter().flat_map(|part| part.subscriptions()) {
            broker.declare(&subscription).await?;
        }
        broker.close().await?;
        for name in stage.names("") {
            stage.start(&name, &[])?;
        }
        Ok(stage)
    }

    pub(super) fn note(&self, event: &Event) -> std::io::Result<()> {
        self.notes.note(event)
    }

    pub(super) async fn connect(&self) -> Result<Arc<dyn Broker>, BoxError> {
        Ok(anybroker::connect(&self.url).await?)
    }

    /// The places of processes of a kind, in their order.
    pub(super) fn names(&self, kind: &str) -> Vec<String> {
        lock(&self.seats).keys().filter(|name| name.starts_with(kind)).cloned().collect()
    }

    /// The process in a place.
    pub(super) fn process(&self, seat: &str) -> String {
        let count = lock(&self.seats).get(seat).map_or(0, |seat| seat.count);
        format!("{seat}.{count}")
    }

    /// Starts a process in a place, if it is free.
    pub(super) fn start(&self, seat: &str, environment: &[(&str, String)]) -> std::io::Result<()> {
        let mut seats = lock(&self.seats);
        let free = seats.get_mut(seat).filter(|place| place.child.is_none());
        let Some(place) = free else { return Ok(()) };
        place.count += 1;
        place.is_held = false;
        let name = format!("{seat}.{}", place.count);
        let work = if seat.starts_with(CONSUMER) {
            // Every other process has two loops.
            Work::Consume { loops: 1 + usize::from(seat.ends_with(['1', '3', '5', '7', '9'])) }
        } else {
            let seed = seat.bytes().fold(self.seed ^ (place.count << 32), |seed, byte| {
                seed.wrapping_mul(31).wrapping_add(u64::from(byte))
            });
            Work::Publish { seed, per_second: self.per_second }
        };
        let (url, folder) = (place.url.clone(), self.folder.clone());
        let role = Role { name: name.clone(), url, folder, parts: self.parts.clone(), work };
        let log = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, serde_json::to_string(&role)?).envs(environment.iter().cloned());
        command.stdout(Stdio::null()).stderr(log);
        // A Ctrl-C is for the director, which then ends the others itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        place.child = Some(Child::spawn(&mut command)?);
        self.note(&Event::Born { process: name, handles: seat.starts_with(CONSUMER) })
    }

    /// Does something to the process in a place, if there is one.
    pub(super) fn with_child(
        &self,
        seat: &str,
        act: impl FnOnce(&mut Child) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut seats = lock(&self.seats);
        match seats.get_mut(seat).and_then(|seat| seat.child.as_mut()) {
            Some(child) => act(child),
            None => Ok(()),
        }
    }

    /// Kills the process in a place, which stays free until the next [`start`](Self::start).
    pub(super) fn kill(&self, seat: &str) -> std::io::Result<()> {
        let process = self.process(seat);
        let child = lock(&self.seats).get_mut(seat).and_then(|seat| {
            seat.is_held = true;
            seat.child.take()
        });
        let Some(mut child) = child else { return Ok(()) };
        child.kill()?;
        self.note(&Event::Gone { process, how: Gone::Killed })
    }

    /// Tells the process in a place to end, and waits until it has; kills one that does not.
    pub(super) async fn end(&self, seat: &str) -> Result<(), BoxError> {
        let process = self.process(seat);
        let child = lock(&self.seats).get_mut(seat).and_then(|seat| {
            seat.is_held = true;
            seat.child.take()
        });
        let Some(mut child) = child else { return Ok(()) };
        child.tell();
        let end = Instant::now() + END;
        let how = loop {
            match child.ended()? {
                Some(status) if status.success() => break Gone::Told,
                Some(status) => break Gone::ByItself(status.to_string()),
                None if Instant::now() > end => {
                    child.kill()?;
                    break Gone::Overdue;
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        };
        Ok(self.note(&Event::Gone { process, how })?)
    }

    /// Notes processes that ended by themselves, and starts others in their places.
    pub(super) async fn look_after(&self) -> Result<(), BoxError> {
        for seat in self.names("") {
            let status = {
                let mut seats = lock(&self.seats);
                let place = seats.get_mut(&seat).filter(|place| !place.is_held);
                let Some(place) = place else { continue };
                let status = place.child.as_mut().map(Child::ended).transpose()?.flatten();
                place.child.take_if(|_| status.is_some());
                status
            };
            let Some(status) = status else { continue };
            let how = Gone::ByItself(status.to_string());
            let process = self.process(&seat);
            let on = vec![process.clone()];
            self.note(&Event::Gone { process, how })?;
            // What follows from it is no violation of its own.
            let number = self.disturb("an end", on, Harm::Interrupts)?;
            sleep(Duration::from_millis(500)).await;
            self.start(&seat, &[])?;
            self.heal_one(number)?;
        }
        Ok(())
    }

    /// Notes that something goes wrong from now on.
    pub(super) fn disturb(
        &self,
        what: impl Into<String>,
        on: Vec<String>,
        harm: Harm,
    ) -> std::io::Result<u64> {
        let (number, what) = (self.next.fetch_add(1, Ordering::Relaxed), what.into());
        let shown =
            if on.is_empty() { what.clone() } else { format!("{what} of {}", on.join(", ")) };
        lock(&self.going_on).insert(number, shown);
        self.note(&Event::Disturbed { number, what, on, harm })?;
        Ok(number)
    }

    pub(super) fn heal_one(&self, number: u64) -> std::io::Result<()> {
        lock(&self.going_on).remove(&number);
        self.note(&Event::Healed { number })
    }

    /// What goes wrong now.
    pub(super) fn going_on(&self) -> String {
        let going_on = lock(&self.going_on);
        let texts: Vec<_> = going_on.values().map(|text| format!("· {text}")).collect();
        texts.join(" ")
    }

    /// Does something to the way of the process in a place, or to all ways.
    pub(super) async fn with_ways(&self, seat: Option<&str>, act: impl Fn(&Proxy)) {
        if let Some(shared) = self.site.lock().await.shared() {
            act(shared);
        }
        for (name, one) in &*lock(&self.seats) {
            if let Some(way) = one.way.as_ref().filter(|_| seat.is_none_or(|seat| seat == name)) {
                act(way);
            }
        }
    }

    pub(super) async fn latency(&self) -> Duration {
        self.site.lock().await.latency
    }

    /// Mends whatever may still be broken.
    pub(super) async fn heal(&self) -> Result<(), BoxError> {
        self.with_ways(None, Proxy::pass).await;
        for seat in self.names("") {
            self.start(&seat, &[])?;
        }
        let numbers: Vec<_> = lock(&self.going_on).keys().copied().collect();
        for number in numbers {
            self.heal_one(number)?;
        }
        Ok(())
    }

    pub(super) async fn end_publishers(&self) -> Result<(), BoxError> {
        self.end_all(PUBLISHER).await
    }

    pub(super) async fn end_consumers(&self) -> Result<(), BoxError> {
        self.end_all(CONSUMER).await
    }

    async fn end_all(&self, kind: &str) -> Result<(), BoxError> {
        // One after the other, as a deployment does: the next one gets what is given back.
        for seat in self.names(kind) {
            self.end(&seat).await?;
        }
        Ok(())
    }

    /// Kills all consumers and starts others, to tell what is stuck from what is lost.
    pub(super) fn replace_consumers(&self) -> std::io::Result<()> {
        let number =
            self.disturb("a replacement of all consumers", Vec::new(), Harm::Interrupts)?;
        for seat in self.names(CONSUMER) {
            self.kill(&seat)?;
            self.start(&seat, &[])?;
        }
        self.heal_one(number)
    }

    pub(super) fn close(&self) -> std::io::Result<()> {
        for seat in self.names("") {
            self.kill(&seat)?;
        }
        Ok(())
    }
}
