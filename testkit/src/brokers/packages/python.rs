use std::path::{Path, PathBuf};

use super::cache::once;
use super::{apt_install, has, run};
use crate::brokers::Error;

/// A virtual environment of Python 3 with pinned packages.
#[derive(Debug)]
pub(crate) struct Venv {
    /// The name of its folder.
    pub(crate) name: &'static str,
    /// `package==version`.
    pub(crate) packages: &'static [&'static str],
}

impl Venv {
    /// Its folder, in which `bin/python` is to be called: the other programs there name a folder
    /// that was renamed.
    pub(crate) fn install(&self) -> Result<PathBuf, Error> {
        once(self.name, |folder| {
            // Debian keeps `venv` apart from the interpreter; whether it is whole shows when used.
            if !has("python3") || create(folder).is_err() {
                apt_install(&["python3", "python3-venv"])?;
                create(folder)?;
            }
            let mut arguments = vec!["-m", "pip", "install", "--quiet"];
            arguments.extend(self.packages);
            run(&folder.join("bin/python").display().to_string(), &arguments)
        })
    }
}

fn create(folder: &Path) -> Result<(), Error> {
    run("python3", &["-m", "venv", "--clear", &folder.display().to_string()])
}
