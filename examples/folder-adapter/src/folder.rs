use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anybroker_core::cloudevents::{AttributeReader, to_json};
use anybroker_core::{
    Destination, Envelope, Error, ErrorKind, Hop, Outgoing, Start, Subscription, now,
};

use crate::name::{FREE, Name, nanos, number};

/// The largest payload, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

/// The folder as one connection sees it:
///
/// ```text
/// order.created/shape          what was declared
/// order.created/email/shape    the same of a group; locked by whoever changes a name in it
/// order.created/email/…        its messages and dead letters, each a file
/// ```
///
/// An error is the file system's, or the library's inside it: see [`failed`].
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) root: PathBuf,
    pub(crate) may_create: bool,
    pub(crate) closed: AtomicBool,
    by: u64,
    last: AtomicU64,
}

impl Folder {
    pub(crate) fn new(root: PathBuf, may_create: bool) -> Self {
        let by = RandomState::new().hash_one(0);
        Self { root, may_create, closed: false.into(), by, last: 0.into() }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(refused(ErrorKind::Closed, "the broker is closed: connect again"));
        }
        fs::metadata(&self.root).map(drop)
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
        let Outgoing { destination, envelope, delay, allow_unrouted } = outgoing;
        envelope.validate().map_err(io::Error::other)?;
        if envelope.payload.len() > MAX_PAYLOAD {
            let text = format!("the payload has more than {MAX_PAYLOAD} bytes");
            return Err(refused(ErrorKind::TooLarge, text));
        }
        let path = self.declare_destination(destination)?;
        let (hop, mut is_routed) = (delay.map(Hop::delayed).unwrap_or_default(), *allow_unrouted);
        let name = self.name(envelope, &hop);
        for entry in fs::read_dir(path)? {
            let group = entry?.path();
            // Without it, this is no group, or not yet.
            if group.join("shape").exists() {
                let _lock = lock(&group)?;
                self.store(&group, name, envelope, &hop)?;
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

    /// Stores a copy durably in a group that is locked.
    pub(crate) fn store(
        &self,
        group: &Path,
        name: Name,
        envelope: &Envelope,
        hop: &Hop,
    ) -> io::Result<()> {
        let new = self.write(group, &to_json(envelope, hop))?;
        fs::rename(new, group.join(name.to_string()))?;
        sync(group)
    }

    /// Writes a file that is nothing before it is renamed.
    fn write(&self, folder: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = folder.join(format!("new.{}.{}", self.by, self.later()));
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(path)
    }

    /// Declares a destination, and the group of a queue.
    pub(crate) fn declare_destination(&self, destination: &Destination) -> io::Result<PathBuf> {
        self.check()?;
        destination.validate().map_err(io::Error::other)?;
        if destination.is_native() {
            let text = "a folder has no native names: use letters, digits, `.` and `-`";
            return Err(refused(ErrorKind::Unsupported, text));
        }
        let (ordered, partitions) = (destination.is_ordered(), destination.partition_count());
        let kind = if destination.is_topic() { "topic" } else { "queue" };
        let path = self.root.join(destination.name());
        self.make(&path, &format!("{kind}, ordered: {ordered}, partitions: {partitions}"))?;
        if !destination.is_topic() {
            self.make(&path.join(destination.name()), &format!("ordered: {ordered}"))?;
        }
        Ok(path)
    }

    /// Declares all that a subscription needs; answers the group's folder.
    pub(crate) fn declare(&self, subscription: &Subscription) -> io::Result<PathBuf> {
        subscription.validate().map_err(io::Error::other)?;
        let destination = subscription.destination();
        if destination.is_topic() && subscription.start_position() == Start::Earliest {
            let text = "a topic keeps no earlier messages: drop .start(Start::Earliest)";
            return Err(refused(ErrorKind::Unsupported, text));
        }
        let group = self.declare_destination(destination)?.join(subscription.group_name());
        self.make(&group, &format!("ordered: {}", subscription.is_ordered()))?;
        Ok(group)
    }

    /// Makes a folder. It is there once it has a shape, and whoever links that first decides it.
    fn make(&self, path: &Path, asked: &str) -> io::Result<()> {
        let shape = path.join("shape");
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
        let text = format!("{name} was declared as ({found}), and not as ({asked})");
        if found == asked { Ok(()) } else { Err(refused(ErrorKind::Mismatch, text)) }
    }

    /// The folder of a group that was declared before.
    pub(crate) fn find(&self, subscription: &Subscription) -> io::Result<PathBuf> {
        self.check()?;
        subscription.validate().map_err(io::Error::other)?;
        Ok(self.root.join(subscription.destination().name()).join(subscription.group_name()))
    }
}

/// Keeps all others from changing names in a group, until the file is dropped. A folder that changes
/// while it is listed may show a file twice or not at all, and then the second message of a key
/// without the first.
pub(crate) fn lock(group: &Path) -> io::Result<File> {
    let file = File::open(group.join("shape"))?;
    file.lock().map(|()| file)
}

/// The messages in a group, in their order.
pub(crate) fn list(group: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(group)? {
        names.extend(entry?.file_name().to_str().and_then(Name::parse));
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a message. What is no event is a message too, and comes as it is.
pub(crate) fn read(group: &Path, name: Name, default_type: &str) -> io::Result<(Envelope, Hop)> {
    let (bytes, id) = (fs::read(group.join(name.to_string()))?, name.at.to_string());
    let content_type = Some("application/cloudevents+json");
    Ok(AttributeReader::new().finish(default_type, Some(&id), content_type, bytes.into()))
}

/// Not synced: after a loss of power, the message is as free as before.
pub(crate) fn rename(group: &Path, from: Name, to: Name) -> io::Result<()> {
    fs::rename(group.join(from.to_string()), group.join(to.to_string()))
}

pub(crate) fn remove(group: &Path, name: Name) -> io::Result<()> {
    fs::remove_file(group.join(name.to_string()))?;
    sync(group)
}

/// Makes durable what was renamed, added or removed in a folder.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// An error of the library, on its way through functions that answer the file system's.
pub(crate) fn refused(kind: ErrorKind, text: impl Into<String>) -> io::Error {
    io::Error::other(Error::new(kind, text.into()))
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
    use anybroker_core::RetryClass;

    use super::*;

    #[test]
    fn an_error_has_a_kind() {
        for (native, kind, class) in [
            (io::ErrorKind::NotFound.into(), ErrorKind::NotFound, RetryClass::Permanent),
            (io::ErrorKind::PermissionDenied.into(), ErrorKind::Denied, RetryClass::Permanent),
            (io::ErrorKind::StorageFull.into(), ErrorKind::Blocked, RetryClass::Transient),
            (io::ErrorKind::Other.into(), ErrorKind::Unavailable, RetryClass::Transient),
            (refused(ErrorKind::Closed, ""), ErrorKind::Closed, RetryClass::Permanent),
        ] {
            let error = failed("test", native);
            assert_eq!((error.kind(), error.retry_class()), (kind, class));
        }
    }
}
