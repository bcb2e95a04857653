use std::fs;
use std::path::PathBuf;

/// Whether the clock of a process can be shifted here.
pub(crate) fn is_shiftable() -> bool {
    library().is_some()
}

/// The environment of a process whose clock is wrong by so many seconds. Only what people set is
/// shifted: the clock that measures how time passes goes on.
pub(crate) fn shifted(seconds: i64) -> Result<Vec<(&'static str, String)>, &'static str> {
    let library = library().ok_or(MISSING)?;
    Ok(vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("{seconds:+}s")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

pub(crate) const MISSING: &str =
    "a clock is shifted by libfaketime, which is not here: run `apt-get install libfaketime`";

fn library() -> Option<PathBuf> {
    // Beside the libraries of each architecture.
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    found.into_iter().find(|path| path.exists())
}
