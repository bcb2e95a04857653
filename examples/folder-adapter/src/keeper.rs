use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{Confirmer, Delivery, Hop, Outcome, Result, Settler, Subscription, now};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::consumer::{Job, Request, Unseen, stale};
use crate::error::{failed, shared};
use crate::files::{Files, Group, list, read, sync};
use crate::name::{Name, millis};

/// At most so many settlements share the syncs of their folder.
const BATCH: usize = 64;

/// How long a keeper that found nothing waits before it looks again: first, and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The one task that takes, renews and settles for a consumer, so that nothing of it happens at the
/// same time.
///
/// The name of a file is the fence: whoever took the message last gave it the name by which it is
/// settled, and who took it before finds no file.
pub(crate) struct Keeper {
    files: Arc<Files>,
    group: Group,
    subscription: Subscription,
    prefetch: usize,
    lease: Duration,
    held: HashMap<u64, Name>,
    next_tag: u64,
    request: Option<Request>,
    pause: Duration,
}

impl Keeper {
    pub(crate) fn new(
        files: Arc<Files>,
        group: Group,
        subscription: Subscription,
        prefetch: usize,
        lease: Duration,
    ) -> Self {
        let (held, pause) = (HashMap::new(), SHORTEST_PAUSE);
        let prefetch = prefetch.max(1);
        Self {
            files,
            group,
            subscription,
            prefetch,
            lease,
            held,
            next_tag: 0,
            request: None,
            pause,
        }
    }

    /// Ends when its consumer and all deliveries are gone, or the connection closes.
    pub(crate) async fn run(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut closing: watch::Receiver<bool>,
    ) {
        loop {
            let (mut batch, is_open) = (Vec::new(), !jobs.is_closed());
            tokio::select! {
                biased;
                _ = closing.changed(), if is_open => jobs.close(),
                count = jobs.recv_many(&mut batch, BATCH) => if count == 0 { break },
                () = sleep(self.pause), if self.request.is_some() => {}
            }
            let is_open = !jobs.is_closed();
            let turn = move || self.turn(batch, is_open).map(|()| self);
            // Without the lock, nothing can be kept: the leases run out, and the messages come again.
            let Ok(Ok(keeper)) = spawn_blocking(turn).await else { return };
            self = keeper;
        }
        // What is still held was forgotten, or its handlers run on a connection that closes.
        let _ = spawn_blocking(move || self.group.lock().map(|_lock| self.give_back())).await;
    }

    /// Does what it was asked for, then looks for new messages.
    fn turn(&mut self, batch: Vec<Job>, is_open: bool) -> io::Result<()> {
        let _lock = self.group.lock()?;
        let (mut copied, mut flushed) = (Vec::new(), Vec::new());
        for job in batch {
            match job {
                Job::Receive(request) => {
                    self.request = Some(request);
                    self.pause = SHORTEST_PAUSE;
                }
                Job::Settle(delivery, outcome, confirmer) => match self.copy(&delivery, outcome) {
                    Ok(name) => copied.push((name, confirmer)),
                    Err(error) => confirmer.confirm(Err(error.operation("settle"))),
                },
                Job::Renew(tags, confirmer) => confirmer.confirm(self.renew(&tags)),
                Job::Abandon(tag) => {
                    if let Some(name) = self.held.remove(&tag) {
                        self.free(&name);
                    }
                }
                Job::Flush(confirmer) => flushed.push(confirmer),
            }
        }
        self.remove(copied);
        for confirmer in flushed {
            confirmer.confirm(Ok(()));
        }
        if is_open {
            self.serve();
        }
        Ok(())
    }

    /// Stores the new copy that the outcome needs; answers the name of the old one.
    fn copy(&mut self, delivery: &Delivery, outcome: Outcome) -> Result<Name> {
        let name = self.held.remove(&delivery.tag()).ok_or_else(stale)?;
        // Nobody can take it while this task has the lock.
        if !self.group.messages.join(name.to_string()).exists() {
            return Err(stale());
        }
        let hop = match outcome {
            Outcome::Ack => return Ok(name),
            Outcome::Retry { after } => Hop::retry(delivery, after),
            Outcome::Release { after } => Hop::release(delivery, after),
            Outcome::DeadLetter { reason } => {
                Hop::dead_letter(delivery, &reason, &self.subscription)
            }
        };
        let (folder, copy) = if hop.failure.is_some() {
            // The oldest dead letter is the one that was given up first.
            (&self.group.dead, self.files.name(delivery.envelope(), &hop))
        } else {
            (&self.group.messages, name.copy(hop.not_before))
        };
        let stored = self.files.write(delivery.envelope(), &hop);
        match stored.and_then(|file| fs::rename(file, folder.join(copy.to_string()))) {
            Ok(()) => Ok(name),
            Err(error) => {
                self.free(&name);
                Err(failed(error))
            }
        }
    }

    /// Removes the old copies, once the new ones are durable.
    fn remove(&self, copied: Vec<(Name, Confirmer)>) {
        if copied.is_empty() {
            return;
        }
        let Group { messages, dead, .. } = &self.group;
        let removed = sync(dead).and_then(|()| sync(messages)).and_then(|()| {
            copied.iter().try_for_each(|(name, _)| fs::remove_file(messages.join(name.to_string())))
        });
        let removed = removed.and_then(|()| sync(messages));
        for (_, confirmer) in copied {
            confirmer.confirm(shared(&removed).map_err(|error| error.operation("settle")));
        }
    }

    fn renew(&mut self, tags: &[u64]) -> Result<()> {
        let until = millis(now() + self.lease);
        for tag in tags {
            let Some(name) = self.held.get_mut(tag) else { continue };
            let renewed = name.held_until(until);
            match rename(&self.group.messages, name, &renewed) {
                Ok(()) => *name = renewed,
                // Somebody else has it, as its settlement will tell.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error).operation("renew")),
            }
        }
        Ok(())
    }

    /// Gives a message back, and counts the attempt.
    fn free(&self, name: &Name) {
        // If it fails, the lease ends.
        let _ = rename(&self.group.messages, name, &name.freed());
    }

    fn give_back(&mut self) {
        for name in std::mem::take(&mut self.held).into_values() {
            self.free(&name);
        }
    }

    /// Answers the request, if there is something to answer and somebody to answer to.
    fn serve(&mut self) {
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        let Some(request) = self.request.take_if(|request| !request.answer.is_closed()) else {
            self.request = None;
            return;
        };
        match self.take(&request) {
            Ok(taken) if taken.0.is_empty() => self.request = Some(request),
            // What nobody waits for any more is released when it is dropped here.
            taken => drop(request.answer.send(taken.map_err(|e| failed(e).operation("receive")))),
        }
    }

    /// Takes messages that are due. In an ordered group, a key's first message hides the others,
    /// whether it is held, delayed or free.
    fn take(&mut self, request: &Request) -> io::Result<Unseen> {
        let mut taken = Unseen::default();
        let room = request.max.min(self.prefetch.saturating_sub(self.held.len()));
        if room == 0 {
            return Ok(taken);
        }
        let (now, mut keys) = (now(), HashSet::new());
        for name in list(&self.group.messages)? {
            if self.subscription.is_ordered() && name.key != 0 && !keys.insert(name.key) {
                continue;
            }
            if name.due > millis(now) {
                continue;
            }
            taken.0.push(self.hold(&name, millis(now + self.lease), &request.settler)?);
            if taken.0.len() == room {
                break;
            }
        }
        Ok(taken)
    }

    fn hold(
        &mut self,
        name: &Name,
        until: u64,
        settler: &Arc<dyn Settler>,
    ) -> io::Result<Delivery> {
        let default_type = self.subscription.destination().name();
        let (envelope, hop) = read(&self.group.messages, name, default_type)?;
        let held = Name { deliveries: name.deliveries + 1, ..name.held_until(until) };
        rename(&self.group.messages, name, &held)?;
        self.next_tag += 1;
        self.held.insert(self.next_tag, held);
        let hop = (hop != Hop::default()).then(|| Box::new(hop));
        let settler = Arc::clone(settler);
        Ok(Delivery::new(Arc::new(envelope), hop, name.deliveries, self.next_tag, settler))
    }
}

fn rename(folder: &Path, from: &Name, to: &Name) -> io::Result<()> {
    fs::rename(folder.join(from.to_string()), folder.join(to.to_string()))
}
