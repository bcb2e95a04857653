use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::{Error, container};

/// A server that outlives the program that started it; written down, another can stop it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detached {
    folder: PathBuf,
    /// Id of the container, if it is one.
    container: Option<String>,
    /// Process group, if it is one.
    group: Option<u32>,
    /// When the leader of the group started, by the kernel's clock. A process with the same number
    /// and another start is somebody else's.
    started: Option<u64>,
}

impl Detached {
    pub(super) fn new(folder: PathBuf, container: Option<String>, group: Option<u32>) -> Self {
        let started = group.and_then(start_of);
        Self { folder, container, group, started }
    }

    /// Where it runs, for people: `container 1234abcd`, `process 4711`.
    pub fn place(&self) -> String {
        match (&self.container, self.group) {
            (Some(id), _) => format!("container {}", id.get(..12).unwrap_or(id)),
            (None, Some(group)) => format!("process {group}"),
            (None, None) => "nowhere".to_owned(),
        }
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        match (&self.container, self.group) {
            (Some(id), _) => container::is_running(id),
            (None, Some(group)) => self.started.is_some() && start_of(group) == self.started,
            (None, None) => false,
        }
    }

    /// Stops it and removes its data. What has ended by itself is only cleaned up after.
    ///
    /// # Errors
    /// Where it cannot be stopped, or its folder cannot be removed.
    pub fn stop(&self) -> Result<(), Error> {
        if let Some(id) = &self.container {
            container::docker(&["rm", "--force", "--volumes", id])?;
        } else if self.is_running()
            && let Some(group) =
                self.group.and_then(|group| Pid::from_raw(i32::try_from(group).ok()?))
        {
            kill_process_group(group, Signal::KILL)
                .map_err(|error| Error::new(format!("cannot stop {}: {error}", self.place())))?;
        }
        // What is being killed may still write for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_running() || self.folder.exists() {
            let removed = fs::remove_dir_all(&self.folder);
            if Instant::now() > deadline {
                let place = self.place();
                let error = removed.err().map_or_else(String::new, |error| format!(": {error}"));
                return Err(Error::new(format!("{place} does not end cleanly{error}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Field 22 of `/proc/PID/stat`, counted from the end of the name, which may hold spaces; nothing
/// for a zombie.
fn start_of(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
