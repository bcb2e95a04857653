use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use anybroker_testkit::brokers::{Detached, cache_folder};
use serde::{Deserialize, Serialize};

/// A broker that `up` started, as it is written down for `down`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) url: String,
    pub(crate) variables: Vec<String>,
    pub(crate) server: Detached,
}

/// The list of what was started, while nobody else reads or changes it.
#[derive(Debug)]
pub(crate) struct List {
    path: PathBuf,
    pub(crate) all: Vec<Started>,
    _lock: File,
}

impl List {
    pub(crate) fn open() -> Result<Self, Box<dyn Error>> {
        let path = cache_folder()?.join("brokers.json");
        let lock = File::create(path.with_extension("lock"))?;
        lock.lock()?;
        let all = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path, all, _lock: lock })
    }

    pub(crate) fn save(&self) -> Result<(), Box<dyn Error>> {
        Ok(fs::write(&self.path, serde_json::to_vec_pretty(&self.all)?)?)
    }
}
