use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anybroker_core::cloudevents::{AttributeReader, to_json};
use anybroker_core::{
    Capabilities, Destination, Envelope, Error, ErrorKind, Hop, Outgoing, RetryClass, Subscription,
    now,
};

use crate::name::{FREE, Name, nanos, number};

/// The folder as one connection sees it:
///
/// ```text
/// order.created/.shape          what was declared
/// order.created/email/.shape    the same of a group; locked by whoever changes a name in it
/// order.created/email/…         its messages and dead letters, each a file
/// ```
///
/// An error is the file system's, or the library's inside it: see [`failed`].
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) root: PathBuf,
    pub(crate) capabilities: Capabilities,
    may_create: bool,
    pub(crate) closed: AtomicBool,
    /// What the connection's consumers have, by tag.
    held: Mutex<HashMap<u64, Held>>,
    by: u64,
    last: AtomicU64,
}

/// A message that a consumer has: the one that made this `Arc`.
pub(crate) type Held = (Arc<Subscription>, Name);

/// A group that nobody else changes. A folder that changes while it is listed may show a file twice
/// or not at all, and then the second message of a key without the first.
pub(crate) struct Group<'a> {
    folder: &'a Folder,
    path: PathBuf,
    _lock: File,
}

impl Folder {
    pub(crate) fn new(root: PathBuf, may_create: bool) -> Self {
        let mut capabilities = Capabilities::new("folder", 4 * 1024 * 1024);
        capabilities.leased = true;
        capabilities.start_earliest = false;
        let (by, closed, last) = (RandomState::new().hash_one(0), false.into(), 0.into());
        Self { root, capabilities, may_create, closed, held: Mutex::default(), by, last }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(refused(ErrorKind::Closed, "the broker is closed: connect again"));
        }
        fs::metadata(&self.root).map(drop)
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a message back. It counts as an attempt, since a handler may have run.
    pub(crate) fn free(&self, (subscription, name): Held) -> io::Result<()> {
        self.find(&subscription)?.rename(name, Name { due: 0, state: FREE, ..name })
    }

    /// The time, or a moment after the last one that was told.
    pub(crate) fn later(&self) -> u64 {
        let now = nanos(now());
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        if last < now { now } else { self.last.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Stores a message in all groups. A crash in between leaves some of them with a message that
    /// was not confirmed.
    pub(crate) fn publish(&self, outgoing: &Outgoing) -> io::Result<()> {
        outgoing.check(&self.capabilities).map_err(io::Error::other)?;
        let path = self.declare_destination(&outgoing.destination)?;
        let (envelope, hop) = (&outgoing.envelope, outgoing.hop());
        let mut is_routed = outgoing.allow_unrouted;
        let name = self.name(envelope, &hop);
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // Without a shape, the group is only being declared.
            if entry.file_type()?.is_dir() && entry.path().join(".shape").try_exists()? {
                self.lock(entry.path())?.store(name, envelope, &hop)?;
                is_routed = true;
            }
        }
        let text = "the topic has no group: declare a subscription first, or allow unrouted ones";
        if is_routed { Ok(()) } else { Err(refused(ErrorKind::Unroutable, text)) }
    }

    /// The name of a new message, behind all others of this connection.
    pub(crate) fn name(&self, envelope: &Envelope, hop: &Hop) -> Name {
        let (key, due) = (number(envelope.key.as_deref()), hop.not_before.map_or(0, nanos));
        Name { at: self.later(), by: self.by, key, due, deliveries: 0, state: FREE }
    }

    /// Declares a destination, and the group of a queue.
    pub(crate) fn declare_destination(&self, destination: &Destination) -> io::Result<PathBuf> {
        self.check()?;
        destination.validate().map_err(io::Error::other)?;
        if destination.is_native() {
            let text = "a folder has no native names: use letters, digits, `.` and `-`";
            return Err(refused(ErrorKind::Unsupported, text));
        }
        let path = self.root.join(destination.name());
        self.make(&path, &destination.shape())?;
        if !destination.is_topic() {
            let group = path.join(destination.name());
            self.make(&group, &format!("ordered: {}", destination.is_ordered()))?;
        }
        Ok(path)
    }

    /// Declares all that a subscription needs.
    pub(crate) fn declare(&self, subscription: &Subscription) -> io::Result<()> {
        self.capabilities.check(subscription).map_err(io::Error::other)?;
        let group = self.declare_destination(subscription.destination())?;
        let group = group.join(subscription.group_name());
        self.make(&group, &format!("ordered: {}", subscription.is_ordered()))
    }

    /// Makes a folder. It is there once it has a shape, and whoever links that first decides it.
    pub(crate) fn make(&self, path: &Path, asked: &str) -> io::Result<()> {
        let shape = path.join(".shape");
        if self.may_create && !shape.exists() {
            fs::create_dir_all(path)?;
            let new = self.write(path, asked.as_bytes())?;
            // Somebody else may have been first.
            let _ = fs::hard_link(&new, &shape);
            fs::remove_file(new)?;
            sync(path)?;
            sync(path.parent().unwrap_or(path))?;
        }
        let (found, name) = (fs::read_to_string(shape)?, path.display());
        let error = Error::mismatch(&name.to_string(), &found, asked);
        if found == asked { Ok(()) } else { Err(io::Error::other(error)) }
    }

    /// Writes a file that is nothing before it is renamed.
    fn write(&self, folder: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = folder.join(format!(".new.{}.{}", self.by, self.later()));
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(path)
    }

    /// The group of a subscription that was declared before.
    pub(crate) fn find(&self, subscription: &Subscription) -> io::Result<Group<'_>> {
        self.check()?;
        subscription.validate().map_err(io::Error::other)?;
        self.lock(self.root.join(subscription.destination().name()).join(subscription.group_name()))
    }

    fn lock(&self, path: PathBuf) -> io::Result<Group<'_>> {
        let file = File::open(path.join(".shape"))?;
        file.lock()?;
        Ok(Group { folder: self, path, _lock: file })
    }
}

impl Group<'_> {
    /// The messages, or the dead letters, in their order.
    pub(crate) fn list(&self, is_meant: impl Fn(&Name) -> bool) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().to_str().and_then(Name::parse).filter(&is_meant));
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn has(&self, name: Name) -> bool {
        self.file(name).exists()
    }

    fn file(&self, name: Name) -> PathBuf {
        self.path.join(name.to_string())
    }

    /// Reads a message. What is no event is a message too, and comes as it is.
    pub(crate) fn read(
        &self,
        name: Name,
        default_type: &str,
    ) -> io::Result<(Envelope, Option<Box<Hop>>)> {
        let (bytes, id) = (fs::read(self.file(name))?, name.at.to_string());
        let content_type = Some("application/cloudevents+json");
        Ok(AttributeReader::new().finish(default_type, Some(&id), content_type, bytes.into()))
    }

    /// Stores a copy, durably.
    pub(crate) fn store(&self, name: Name, envelope: &Envelope, hop: &Hop) -> io::Result<()> {
        let new = self.folder.write(&self.path, &to_json(envelope, hop)).map_err(unsure)?;
        fs::rename(new, self.file(name)).and_then(|()| sync(&self.path)).map_err(unsure)
    }

    /// Takes, renews or frees. Not synced: after a loss of power, the message is free as before.
    pub(crate) fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        fs::rename(self.file(from), self.file(to))
    }

    pub(crate) fn remove(&self, name: Name) -> io::Result<()> {
        fs::remove_file(self.file(name)).and_then(|()| sync(&self.path)).map_err(unsure)
    }
}

/// Makes durable what was renamed, added or removed in a folder.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// An error of the library, on its way through functions that answer the file system's.
pub(crate) fn refused(kind: ErrorKind, text: impl Into<String>) -> io::Error {
    io::Error::other(Error::new(kind, text.into()))
}

/// An error after which nobody knows what is on the disk: other groups may have a copy already, and
/// a sync that failed may have been done.
pub(crate) fn unsure(error: io::Error) -> io::Error {
    io::Error::other(failed("store", error).class(RetryClass::Ambiguous))
}

/// Says what an error means to the library.
pub(crate) fn failed(operation: &'static str, error: io::Error) -> Error {
    let error = error.downcast::<Error>().unwrap_or_else(|source| {
        let (kind, text) = match source.kind() {
            io::ErrorKind::NotFound => (ErrorKind::NotFound, "it does not exist: declare it first"),
            io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "the folder has another owner"),
            io::ErrorKind::StorageFull => (ErrorKind::Blocked, "the disk is full: make room"),
            _ => (ErrorKind::Unavailable, "the folder cannot be read or written"),
        };
        Error::new(kind, text).with_source(source)
    });
    error.broker("folder").operation(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_kind() {
        for (native, kind, class) in [
            (io::ErrorKind::NotFound.into(), ErrorKind::NotFound, RetryClass::Permanent),
            (io::ErrorKind::PermissionDenied.into(), ErrorKind::Denied, RetryClass::Permanent),
            (io::ErrorKind::StorageFull.into(), ErrorKind::Blocked, RetryClass::Transient),
            (io::ErrorKind::Other.into(), ErrorKind::Unavailable, RetryClass::Transient),
            (refused(ErrorKind::Closed, ""), ErrorKind::Closed, RetryClass::Permanent),
            (unsure(io::ErrorKind::Other.into()), ErrorKind::Unavailable, RetryClass::Ambiguous),
        ] {
            let error = failed("test", native);
            assert_eq!((error.kind(), error.retry_class()), (kind, class));
        }
    }
}
