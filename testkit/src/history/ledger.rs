use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Lines in a file, each written before the next step is taken: what a killed process has done.
///
/// A line outlives its process as soon as the kernel has it, so nothing is synced to the disk: a
/// test kills processes, not the machine.
#[derive(Debug)]
pub(crate) struct Ledger(File);

/// Ends what a killed process left half written, so that it is no line.
const TORN: &[u8] = b"!\n";

impl Ledger {
    /// Opens the ledger to go on with it, or begins it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(TORN)?;
            }
        }
        Ok(Self(file))
    }

    /// Adds lines; the kernel has them when this returns.
    pub(crate) fn append<'a>(&self, lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let lines: String = lines.into_iter().flat_map(|line| [line, "\n"]).collect();
        // One write, so that those of several threads do not mix.
        (&self.0).write_all(lines.as_bytes())
    }

    /// The whole lines of the ledger; none where there is no file yet.
    pub(crate) fn read(path: &Path) -> io::Result<Vec<String>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes?,
        };
        Ok(whole_lines(&String::from_utf8_lossy(&bytes)).map(str::to_owned).collect())
    }
}

/// The lines that were written to their end.
pub(super) fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    let ended = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    ended.filter(|line| !line.ends_with('!'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_no_line() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("anybroker-ledger-{}", std::process::id()));
        assert!(Ledger::read(&path)?.is_empty(), "no file has no lines");
        Ledger::open(&path)?.append(["m1", "m2"])?;
        OpenOptions::new().append(true).open(&path)?.write_all(b"m34")?;
        assert_eq!(Ledger::read(&path)?, ["m1", "m2"], "half a line does not count");
        Ledger::open(&path)?.append(["m5"])?;
        assert_eq!(Ledger::read(&path)?, ["m1", "m2", "m5"]);
        std::fs::remove_file(&path)
    }
}
