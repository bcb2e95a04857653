//! Programs from package registries, each installed once into the cache folder.

mod cache;
mod debian;
mod maven;
mod python;

use std::path::PathBuf;
use std::process::Command;

use rustix::process::geteuid;

pub use self::cache::cache_folder;
pub(super) use self::debian::{BOOKWORM, FORKY, Package};
pub(super) use self::maven::Jars;
pub(crate) use self::python::Venv;
use super::Error;
use super::process::output_of;

/// Where programs are.
#[derive(Debug, Clone)]
pub(super) enum Programs {
    /// On this machine as it is.
    Machine,
    /// In a Debian of their own.
    Root(PathBuf),
    /// In a folder that scripts know as `$PROGRAMS`.
    Folder(PathBuf),
}

impl Programs {
    /// A command that runs a shell script there, with `arguments` as `$1` and on.
    pub(super) fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command;
        match self {
            Self::Root(root) => command = debian::shell(root, script),
            Self::Machine => {
                command = Command::new("sh");
                command.args(["-c", script]);
            }
            Self::Folder(folder) => {
                command = Command::new("sh");
                command.args(["-c", script]).env("PROGRAMS", folder);
            }
        }
        command.arg("sh").args(arguments);
        command
    }
}

/// Sees to it that this machine has a program, by `packages` where it has not.
fn need(program: &str, packages: &[&str]) -> Result<(), Error> {
    if has(program) { Ok(()) } else { apt_install(packages) }
}

fn apt_install(packages: &[&str]) -> Result<(), Error> {
    let arguments = [&["install", "-y", "--no-install-recommends"], packages].concat();
    let packages = packages.join(" and ");
    if !cfg!(target_os = "linux") || !has("apt-get") {
        return Err(Error::new(format!(
            "{packages} is missing, and installs itself only where there is apt-get"
        )));
    }
    if !geteuid().is_root() {
        return Err(Error::new(format!(
            "{packages} is missing, and only root can install it:\n    sudo apt-get {}",
            arguments.join(" ")
        )));
    }
    run("apt-get", &["update"])?;
    run("apt-get", &arguments)
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    output_of(&mut command).map(drop).map_err(|error| {
        Error::new(format!("`{program} {}` failed:\n{error}", arguments.join(" ")))
    })
}
