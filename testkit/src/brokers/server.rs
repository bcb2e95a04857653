use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::backing::Backing;
use super::certificates::Certificates;
use super::recipe::Recipe;
use super::{Detached, Error};

/// A cold start on a busy machine takes 15 s, a first start in a fresh container longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// A server that answers.
///
/// Dropped, it stops what was started for it and removes its data; a server from the environment
/// stays as it is. All methods block: from asynchronous code, call the slow ones in
/// `spawn_blocking`.
#[derive(Debug)]
pub struct Server {
    recipe: Box<dyn Recipe>,
    url: String,
    version: String,
    tls: Option<Tls>,
    /// None for a server from the environment.
    backing: Option<Backing>,
}

/// The listener of a server that speaks TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Its URL.
    pub url: String,
    /// The certificate, in PEM, of the authority that a client has to trust.
    pub authority: PathBuf,
}

impl Server {
    /// What clients connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The version that the server states.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The listener with TLS, where it was asked for.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Freezes the server (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// For a server from the environment, and a killed one.
    pub fn pause(&self) -> Result<(), Error> {
        self.own()?.pause()
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// For a server from the environment, and a killed one.
    pub fn resume(&self) -> Result<(), Error> {
        self.own()?.resume()
    }

    /// Ends the server as a power cut would (kill -9). Its data stays for
    /// [`restart`](Self::restart).
    ///
    /// # Errors
    /// For a server from the environment.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.own_mut()?.kill()
    }

    /// Starts the server again on the same data and the same port, and waits until it answers. Kills
    /// it first if it runs.
    ///
    /// # Errors
    /// For a server from the environment, and for one that does not come back.
    pub fn restart(&mut self) -> Result<(), Error> {
        let backing = self.own_mut()?;
        backing.kill()?;
        backing.start()?;
        self.wait()
    }

    /// Starts the server again on the same port without the data it had, as after the loss of its
    /// disk, and waits until it answers.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub fn restart_empty(&mut self) -> Result<(), Error> {
        self.own_mut()?.start_empty()?;
        self.wait()
    }

    /// Runs one of the server's own programs, such as `rabbitmqctl`, and answers its output.
    ///
    /// # Errors
    /// For a server from the environment, and for a program that fails.
    pub fn exec(&self, arguments: &[&str]) -> Result<String, Error> {
        self.own()?.exec(arguments)
    }

    /// The end of the log of a server that ended by itself; `None` while it runs, and for a server
    /// from the environment.
    pub fn log_if_ended(&self) -> Option<String> {
        let backing = self.backing.as_ref().filter(|backing| backing.has_ended())?;
        Some(backing.log_tail())
    }

    /// Stops the server and removes its data, if it was started here.
    pub fn stop(self) {
        drop(self);
    }

    /// Lets the server live on after this program. What is answered can stop it; `None` for a server
    /// from the environment, which lives on anyway.
    pub fn detach(mut self) -> Option<Detached> {
        self.backing.take().map(Backing::detach)
    }

    pub(super) fn foreign(recipe: Box<dyn Recipe>, url: String, version: String) -> Self {
        Self { recipe, url, version, tls: None, backing: None }
    }

    /// A server of our own, once it answers.
    pub(super) fn started(recipe: Box<dyn Recipe>, backing: Backing) -> Result<Self, Error> {
        let site = backing.site();
        let tls = recipe
            .tls_url(site)
            .map(|url| Tls { url, authority: Certificates::of(site).authority });
        let url = recipe.url(site);
        let version = String::new();
        let mut server = Self { recipe, url, version, tls, backing: Some(backing) };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<(), Error> {
        let name = self.recipe.name();
        let backing = self.own()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.recipe.probe(&self.url) {
                Ok(version) if self.recipe.accepts(&version) => match self.tls_listens() {
                    Ok(()) => {
                        self.version = version;
                        return Ok(());
                    }
                    Err(error) => error,
                },
                Ok(version) => {
                    return Err(Error::new(format!("{name} was started, and {version} answers")));
                }
                Err(error) => error,
            };
            let has_ended = backing.has_ended();
            if has_ended || Instant::now() > deadline {
                let state = if has_ended { "ended" } else { "does not answer" };
                return Err(Error::new(format!(
                    "{name} was started and {state} ({error}); its log ends in:\n{}",
                    backing.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The listener with TLS may be there a moment later than the other one.
    fn tls_listens(&self) -> Result<(), Error> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let start = tls.url.rfind(['@', '/']).map_or(0, |at| at + 1);
        TcpStream::connect(&tls.url[start..])
            .map(drop)
            .map_err(Error::io("its listener with TLS is not there"))
    }

    fn own(&self) -> Result<&Backing, Error> {
        self.backing.as_ref().ok_or_else(not_ours)
    }

    fn own_mut(&mut self) -> Result<&mut Backing, Error> {
        self.backing.as_mut().ok_or_else(not_ours)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(backing) = &mut self.backing {
            // The reaper would do it as well, but an ended child stays a zombie until we wait for it.
            let _ = backing.kill();
        }
    }
}

fn not_ours() -> Error {
    Error::new("the server came by its URL from the environment, and is not ours to control")
}
