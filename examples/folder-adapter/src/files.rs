use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anybroker_core::{
    Destination, Envelope, ErrorKind, Hop, Result, Start, Subscription, cloudevents, now,
};

use crate::error::{error, failed};
use crate::name::{self, Name};

/// What is stored, and where:
///
/// ```text
/// orders/shape                     what was declared
/// orders/groups/email/shape
/// orders/groups/email/messages/    a file for each message
/// orders/groups/email/dead/        a file for each dead letter
/// orders/groups/email/lock         held by whoever changes a name in the group
/// .new/                            files and folders that are not finished
/// ```
#[derive(Debug)]
pub(crate) struct Files {
    root: PathBuf,
    may_create: bool,
    /// Tells the names of this connection from those of others.
    by: u64,
    last: AtomicU64,
}

/// The folders of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub(crate) messages: PathBuf,
    pub(crate) dead: PathBuf,
    lock: PathBuf,
}

impl Files {
    pub(crate) fn open(root: PathBuf, may_create: bool) -> Result<Self> {
        if may_create {
            fs::create_dir_all(root.join(".new")).map_err(failed)?;
        }
        let files = Self { root, may_create, by: RandomState::new().hash_one(0), last: 0.into() };
        files.health()?;
        Ok(files)
    }

    pub(crate) fn health(&self) -> Result<()> {
        fs::read_dir(self.root.join(".new")).map(drop).map_err(failed)
    }

    /// The name of a new message, behind all that this connection named before.
    pub(crate) fn name(&self, envelope: &Envelope, hop: &Hop) -> Name {
        let key = name::number(envelope.key.as_deref());
        let due = name::due(hop.not_before);
        Name { at: self.later(), by: self.by, key, due, deliveries: 0, held: false }
    }

    /// The time, or a moment after the last one that was told.
    fn later(&self) -> u64 {
        let now = name::nanos(now());
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        if last < now { now } else { self.last.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Writes a copy that nobody sees yet, durably; renamed, it is stored.
    pub(crate) fn write(&self, envelope: &Envelope, hop: &Hop) -> io::Result<PathBuf> {
        let path = self.unfinished();
        let mut file = File::create_new(&path)?;
        file.write_all(&cloudevents::to_json(envelope, hop))?;
        file.sync_all()?;
        Ok(path)
    }

    fn unfinished(&self) -> PathBuf {
        self.root.join(".new").join(format!("{:016x}.{}", self.by, self.later()))
    }

    /// Declares a destination, and the group of a queue.
    pub(crate) fn declare_destination(&self, destination: &Destination) -> Result<PathBuf> {
        destination.validate()?;
        if destination.is_native() {
            let text = "a folder has no native names: use letters, digits, `.` and `-`";
            return Err(error(ErrorKind::Unsupported, text));
        }
        let kind = if destination.is_topic() { "topic" } else { "queue" };
        let order = if destination.is_ordered() { "ordered" } else { "unordered" };
        let shape = format!("{kind}, {order}, partitions: {}", destination.partition_count());
        let path = self.root.join(destination.name());
        self.declare_folder(&path, &shape, &["groups"])?;
        if !destination.is_topic() {
            self.declare_group(&path, destination.name(), destination.is_ordered())?;
        }
        Ok(path)
    }

    /// Declares a subscription; answers its group.
    pub(crate) fn declare(&self, subscription: &Subscription) -> Result<Group> {
        subscription.validate()?;
        if subscription.start_position() == Start::Earliest && subscription.destination().is_topic()
        {
            let text = "a topic keeps no earlier messages: drop .start(Start::Earliest)";
            return Err(error(ErrorKind::Unsupported, text));
        }
        let path = self.declare_destination(subscription.destination())?;
        self.declare_group(&path, subscription.group_name(), subscription.is_ordered())
    }

    fn declare_group(&self, path: &Path, name: &str, is_ordered: bool) -> Result<Group> {
        let path = path.join("groups").join(name);
        let shape = if is_ordered { "ordered" } else { "unordered" };
        self.declare_folder(&path, shape, &["messages", "dead"])?;
        Ok(Group::at(&path))
    }

    /// Makes a folder whole or not at all, whoever else makes it at the same time.
    fn declare_folder(&self, path: &Path, shape: &str, folders: &[&str]) -> Result<()> {
        let found = match fs::read_to_string(path.join("shape")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.may_create => {
                let new = self.unfinished();
                let created = self.create(&new, path, shape, folders);
                // Somebody else was first, or it failed: it is looked at once more.
                let found = created.or_else(|_| fs::read_to_string(path.join("shape")));
                let _ = fs::remove_dir_all(&new);
                found
            }
            found => found,
        };
        let found = found.map_err(failed)?;
        if found == shape {
            return Ok(());
        }
        let text = format!(
            "{} was declared as ({found}) and is used as ({shape}): use the same on both sides",
            path.display()
        );
        Err(error(ErrorKind::Mismatch, text))
    }

    fn create(&self, new: &Path, path: &Path, shape: &str, folders: &[&str]) -> io::Result<String> {
        for folder in folders {
            fs::create_dir_all(new.join(folder))?;
        }
        File::create_new(new.join("lock"))?;
        let mut file = File::create_new(new.join("shape"))?;
        file.write_all(shape.as_bytes())?;
        file.sync_all()?;
        sync(new)?;
        fs::rename(new, path)?;
        sync(path.parent().unwrap_or(&self.root))?;
        Ok(shape.to_owned())
    }

    /// The group of a subscription, whatever else the subscription says.
    pub(crate) fn find(&self, subscription: &Subscription) -> Result<Group> {
        subscription.validate()?;
        let path = self.root.join(subscription.destination().name());
        let path = path.join("groups").join(subscription.group_name());
        fs::metadata(&path).map_err(failed)?;
        Ok(Group::at(&path))
    }

    /// The groups of a destination.
    pub(crate) fn groups(destination: &Path) -> io::Result<Vec<Group>> {
        let entries = fs::read_dir(destination.join("groups"))?;
        entries.map(|entry| Ok(Group::at(&entry?.path()))).collect()
    }
}

impl Group {
    fn at(path: &Path) -> Self {
        let [messages, dead, lock] = ["messages", "dead", "lock"].map(|name| path.join(name));
        Self { messages, dead, lock }
    }

    /// Locks the group against all processes until the file is dropped. A folder that changes while
    /// it is listed may show a file twice or not at all, and so the second message of a key before
    /// the first.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let file = File::open(&self.lock)?;
        file.lock()?;
        Ok(file)
    }
}

/// The messages in a folder, in the order of their names.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().to_str().and_then(Name::parse));
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a message, whoever wrote it: what is no event is delivered as it is.
pub(crate) fn read(folder: &Path, name: &Name, default_type: &str) -> io::Result<(Envelope, Hop)> {
    let bytes = fs::read(folder.join(name.to_string()))?;
    let reader = cloudevents::AttributeReader::new();
    let id = name.at.to_string();
    Ok(reader.finish(default_type, Some(&id), Some("application/cloudevents+json"), bytes.into()))
}

/// Makes what was renamed, added or removed in a folder durable.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
