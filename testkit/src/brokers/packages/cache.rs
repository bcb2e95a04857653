use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::brokers::Error;

/// Where programs, and the list of the servers that were started, are kept between runs.
///
/// # Errors
/// With neither `XDG_CACHE_HOME` nor `HOME` in the environment, or where it cannot be created.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .ok_or_else(|| Error::new("HOME is not set: set it, or XDG_CACHE_HOME, to a folder"))?
        .join("anybroker");
    fs::create_dir_all(&folder)
        .map_err(Error::io(format!("cannot create {}", folder.display())))?;
    Ok(folder)
}

/// The folder `name` of the cache, which is there finished or not at all: `install` fills another,
/// which then gets the name.
pub(super) fn once(
    name: &str,
    install: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let cache = cache_folder()?;
    let folder = cache.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    // One at a time, in all programs: several may want the same, and neither apt nor Maven likes
    // company.
    let lock = cache.join("install.lock");
    let lock =
        File::create(&lock).map_err(Error::io(format!("cannot write {}", lock.display())))?;
    lock.lock().map_err(Error::io("cannot lock the cache"))?;
    if folder.exists() {
        return Ok(folder);
    }
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .map_err(Error::io(format!("cannot remove {}", partial.display())))?;
    }
    eprintln!("installing {name} into {} (once)", cache.display());
    install(&partial)?;
    fs::rename(&partial, &folder)
        .map_err(Error::io(format!("cannot create {}", folder.display())))?;
    Ok(folder)
}
