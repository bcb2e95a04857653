//! Which broker the service uses, and whether anybody uses the old one: what the commands tell each
//! other, through files that outlive them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

/// Which broker the service uses: the content of the switch file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// Producers use the old broker, consumers both.
    From,
    /// Producers use the new broker, consumers both.
    To,
    /// The old broker is left.
    Left,
}

/// A folder with the switch, the ledger, and a lock that tells whether anybody uses the old broker.
pub(super) struct State(PathBuf);

impl State {
    pub(super) fn open() -> io::Result<Self> {
        let folder =
            std::env::var_os("ANYBROKER_STATE").map_or("target/migrate".into(), PathBuf::from);
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.0.join("ledger")
    }

    pub(super) fn phase(&self) -> io::Result<Phase> {
        match fs::read_to_string(self.0.join("switch")).as_deref().map(str::trim) {
            Ok("from") => Ok(Phase::From),
            Ok("to") => Ok(Phase::To),
            Ok("left") => Ok(Phase::Left),
            Ok(other) => Err(io::Error::other(format!("the switch says {other:?}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Phase::From),
            Err(error) => Err(io::Error::other(format!("the switch cannot be read: {error}"))),
        }
    }

    /// Replaces the switch in one step: whoever reads it finds the one or the other.
    pub(super) fn enter(&self, phase: Phase) -> io::Result<()> {
        let next = self.0.join("switch.next");
        let mut file = File::create(&next)?;
        file.write_all(format!("{phase:?}").to_lowercase().as_bytes())?;
        file.sync_all()?;
        fs::rename(next, self.0.join("switch"))?;
        File::open(&self.0)?.sync_all()?;
        println!("switched: {phase:?}");
        Ok(())
    }

    fn lock(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(self.0.join("lock"))
    }

    /// The right to use the old broker, `None` when it is left; waits while a drain has it alone. The
    /// system takes it from a process that dies.
    pub(super) async fn permit(&self) -> io::Result<Option<File>> {
        loop {
            let file = self.lock()?;
            let is_locked = file.try_lock_shared().is_ok();
            // Read under the lock: a drain that came before has said so here.
            match self.phase()? {
                Phase::Left => return Ok(None),
                Phase::From | Phase::To if is_locked => return Ok(Some(file)),
                Phase::From | Phase::To => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// The old broker for oneself, once every service has left it.
    pub(super) fn alone(&self) -> io::Result<File> {
        println!("waiting for the service to leave the old broker");
        let file = self.lock()?;
        file.lock()?;
        Ok(file)
    }

    /// Waits until the service has to leave the old broker, or may come back to it.
    pub(super) async fn until_moved(&self, uses_old: bool) -> io::Result<()> {
        while (self.phase()? != Phase::Left) == uses_old {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}
