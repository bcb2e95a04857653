use std::process::Command;
use std::time::{Duration, Instant};

use super::packages::Programs;
use super::process::{self, Process};
use super::reaper::Reaper;
use super::recipe::{Image, Recipe, Script};
use super::site::Site;
use super::{Detached, Error, container};

/// What runs behind a server of our own, and takes it away when dropped.
#[derive(Debug)]
pub(super) struct Backing {
    engine: Engine,
    site: Site,
    reaper: Reaper,
}

#[derive(Debug)]
enum Engine {
    Container { id: String, image: Image },
    Packages { process: Option<Process>, programs: Programs, script: Script },
}

impl Backing {
    pub(super) fn container(recipe: &dyn Recipe) -> Result<Self, Error> {
        let mut site = Site::new()?;
        // Takes the folder away again, until there is a container to take away with it.
        let folder = Reaper::new(&site.folder, None)?;
        // Only the mapped ports lead into a container.
        site.listen = "0.0.0.0";
        recipe.configure(&site)?;
        let image = recipe.image(&site);
        let id = container::start(&image, &site)?;
        let reaper = Reaper::new(&site.folder, Some(&id))?;
        folder.dismiss();
        Ok(Self { engine: Engine::Container { id, image }, site, reaper })
    }

    pub(super) fn packages(recipe: &dyn Recipe, programs: Programs) -> Result<Self, Error> {
        let site = Site::new()?;
        let reaper = Reaper::new(&site.folder, None)?;
        recipe.configure(&site)?;
        let script = recipe.script(&site);
        let mut backing =
            Self { engine: Engine::Packages { process: None, programs, script }, site, reaper };
        backing.start()?;
        Ok(backing)
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    /// Starts a killed server again.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Container { id, .. } => container::docker(&["start", id]).map(drop),
            Engine::Packages { process, programs, script } => {
                let mut command = programs.command(script.text, &[]);
                command.envs(script.environment.clone());
                *process = Some(Process::spawn(command, &self.site.folder)?);
                Ok(())
            }
        }
    }

    pub(super) fn kill(&mut self) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Container { id, .. } if container::is_running(id) => {
                container::docker(&["kill", id]).map(drop)
            }
            Engine::Packages { process, .. } => {
                if let Some(process) = process.take() {
                    process.kill();
                }
                // The leader has ended; what it started may hold a port a little longer.
                let deadline = Instant::now() + Duration::from_secs(10);
                while !self.site.ports_are_free() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
            Engine::Container { .. } => Ok(()),
        }
    }

    /// Starts the server again without its data.
    pub(super) fn start_empty(&mut self) -> Result<(), Error> {
        self.kill()?;
        if let Engine::Container { id, image } = &mut self.engine {
            container::docker(&["rm", "--force", "--volumes", id])?;
            *id = container::start(image, &self.site)?;
            let reaper = Reaper::new(&self.site.folder, Some(id))?;
            std::mem::replace(&mut self.reaper, reaper).dismiss();
            return Ok(());
        }
        match std::fs::remove_dir_all(self.site.data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::new(format!("cannot remove the server's data: {error}")))
            }
            _ => self.start(),
        }
    }

    pub(super) fn pause(&self) -> Result<(), Error> {
        match &self.engine {
            Engine::Container { id, .. } => container::docker(&["pause", id]).map(drop),
            Engine::Packages { process: Some(process), .. } => process.pause(),
            Engine::Packages { process: None, .. } => Err(is_killed()),
        }
    }

    pub(super) fn resume(&self) -> Result<(), Error> {
        match &self.engine {
            Engine::Container { id, .. } => container::docker(&["unpause", id]).map(drop),
            Engine::Packages { process: Some(process), .. } => process.resume(),
            Engine::Packages { process: None, .. } => Err(is_killed()),
        }
    }

    pub(super) fn exec(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = match &self.engine {
            Engine::Container { id, .. } => {
                let mut command = Command::new("docker");
                command.args(["exec", id]).args(arguments);
                command
            }
            Engine::Packages { programs, script, .. } => {
                let mut command = programs.command(r#"exec "$@""#, arguments);
                command.envs(script.environment.clone());
                command
            }
        };
        process::output_of(&mut command)
            .map_err(|error| Error::new(format!("`{}` failed: {error}", arguments.join(" "))))
    }

    pub(super) fn has_ended(&self) -> bool {
        match &self.engine {
            Engine::Container { id, .. } => !container::is_running(id),
            Engine::Packages { process, .. } => process.as_ref().is_none_or(Process::has_ended),
        }
    }

    pub(super) fn log_tail(&self) -> String {
        match &self.engine {
            Engine::Container { id, .. } => container::log_tail(id),
            Engine::Packages { .. } => process::log_tail(&self.site.folder),
        }
    }

    pub(super) fn detach(self) -> Detached {
        let (container, group) = match self.engine {
            Engine::Container { id, .. } => (Some(id), None),
            Engine::Packages { process, .. } => (None, process.map(|process| process.group())),
        };
        self.reaper.dismiss();
        Detached::new(self.site.folder, container, group)
    }
}

fn is_killed() -> Error {
    Error::new("the server is killed: restart it first")
}
