use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Mutex;

use super::Error;

const LOOPBACK: &str = "127.0.0.1";

/// Where one server lives: its folder, its ports, and the address it listens on.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// Temporary, readable by everybody: a server in a container runs as another user.
    pub(super) folder: PathBuf,
    /// The first is for clients, the rest is the server's own.
    pub(super) ports: [u16; 4],
    /// `127.0.0.1`, or `0.0.0.0` inside a container, where only a mapped port leads in.
    pub(super) listen: &'static str,
}

impl Site {
    pub(super) fn new() -> Result<Self, Error> {
        let ports = [free_port()?, free_port()?, free_port()?, free_port()?];
        let folder =
            std::env::temp_dir().join(format!("anybroker-{}-{}", std::process::id(), ports[0]));
        fs::create_dir(&folder)
            .map_err(Error::io(format!("cannot create {}", folder.display())))?;
        Ok(Self { folder, ports, listen: LOOPBACK })
    }

    pub(super) fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Where the server keeps its data. In a container it runs as somebody who cannot write to the
    /// folder.
    pub(super) fn data(&self) -> PathBuf {
        if self.listen == LOOPBACK {
            self.folder.join("data")
        } else {
            "/tmp/anybroker-data".into()
        }
    }

    pub(super) fn write(&self, name: &str, content: &str) -> Result<PathBuf, Error> {
        let path = self.folder.join(name);
        fs::write(&path, content).map_err(Error::io(format!("cannot write {}", path.display())))?;
        Ok(path)
    }

    /// Whether the ports can be taken: false while a killed server still holds one.
    pub(super) fn ports_are_free(&self) -> bool {
        self.ports.iter().all(|&port| is_free(port))
    }
}

/// A port below those that the system hands to outgoing connections. On one of those, a client that
/// reconnects to a killed server can, by chance, meet itself.
fn free_port() -> Result<u16, Error> {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..1000 {
        let port = fastrand::u16(20_000..32_000);
        if !taken.contains(&port) && is_free(port) {
            taken.push(port);
            return Ok(port);
        }
    }
    Err(Error::new("no free port between 20000 and 32000"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
