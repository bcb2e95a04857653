use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anybroker_core::{Confirmation, Confirmer, ErrorKind, Hop, Outgoing, Producer, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use crate::MAX_PAYLOAD;
use crate::connection::Connection;
use crate::error::{closed, error, failed, shared};
use crate::files::{Files, Group, sync};
use crate::name::Name;

/// At most so many sends share the syncs of their folders.
const BATCH: usize = 64;

pub(crate) type Send = (Outgoing, Confirmer);

/// Copies that are written and not yet seen: what each group gets, in the order of the sends.
type Staged = BTreeMap<Group, Vec<(PathBuf, Name)>>;

impl Producer for Connection {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        if self.is_closed() || self.sends.send((outgoing, confirmer)).is_err() {
            return Confirmation::ready(Err(closed().operation("publish")));
        }
        confirmation
    }
}

/// The one task that stores what a connection publishes: in the order of the calls, as many at once
/// as came meanwhile. It ends, with all stored, when the connection closes.
pub(crate) async fn run(
    files: Arc<Files>,
    mut sends: mpsc::UnboundedReceiver<Send>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let (mut batch, is_open) = (Vec::new(), !sends.is_closed());
        tokio::select! {
            biased;
            _ = closing.changed(), if is_open => sends.close(),
            count = sends.recv_many(&mut batch, BATCH) => if count == 0 { return },
        }
        let files = Arc::clone(&files);
        // If it panicked, the confirmers were dropped, which says that nobody knows.
        let _ = spawn_blocking(move || publish(&files, batch)).await;
    }
}

/// Stores a batch, and confirms once files and folders are durable.
///
/// The copies of all groups are written before the first is seen. A crash in between leaves some
/// groups with a message that was not confirmed.
fn publish(files: &Files, batch: Vec<Send>) {
    let (mut staged, mut sent) = (Staged::new(), Vec::new());
    for (outgoing, confirmer) in batch {
        match stage(files, &outgoing, &mut staged) {
            Ok(()) => sent.push(confirmer),
            Err(error) => confirmer.confirm(Err(error.operation("publish"))),
        }
    }
    let stored = store(staged);
    for confirmer in sent {
        confirmer.confirm(shared(&stored).map_err(|error| error.operation("publish")));
    }
}

fn stage(files: &Files, outgoing: &Outgoing, staged: &mut Staged) -> Result<()> {
    let envelope = &outgoing.envelope;
    envelope.validate()?;
    let size = envelope.payload.len();
    if size > MAX_PAYLOAD {
        let text = format!("the payload has {size} bytes and may have {MAX_PAYLOAD}");
        return Err(error(ErrorKind::TooLarge, text));
    }
    let destination = files.declare_destination(&outgoing.destination)?;
    let groups = Files::groups(&destination).map_err(failed)?;
    if groups.is_empty() && !outgoing.allow_unrouted {
        let text =
            "the topic has no group: declare a subscription first, or allow unrouted messages";
        return Err(error(ErrorKind::Unroutable, text));
    }
    let hop = outgoing.delay.map(Hop::delayed).unwrap_or_default();
    let name = files.name(envelope, &hop);
    let copies = groups.iter().map(|_| files.write(envelope, &hop)).collect::<io::Result<Vec<_>>>();
    for (group, copy) in groups.into_iter().zip(copies.map_err(failed)?) {
        staged.entry(group).or_default().push((copy, name.clone()));
    }
    Ok(())
}

fn store(staged: Staged) -> io::Result<()> {
    for (group, copies) in staged {
        let _lock = group.lock()?;
        for (copy, name) in copies {
            fs::rename(copy, group.messages.join(name.to_string()))?;
        }
        sync(&group.messages)?;
    }
    Ok(())
}
