use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ledger::whole_lines;
use super::write::EXTENSION;
use super::{Event, Record};

/// Reads the ledgers of a folder while they grow.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    /// How far each file is read.
    read: HashMap<PathBuf, u64>,
}

impl Reader {
    /// Reads from the beginning.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), read: HashMap::new() }
    }

    /// What was written since the last call, each ledger in its order.
    ///
    /// # Errors
    /// Those of the files, and `InvalidData` for a line that is no record.
    pub fn news(&mut self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let Some(by) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let from = self.read.entry(path.clone()).or_default();
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(*from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            // The last line may still be on its way.
            bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
            *from += bytes.len() as u64;
            for line in whole_lines(&String::from_utf8_lossy(&bytes)) {
                let (at, event) = parse(line).ok_or_else(|| {
                    let text = format!("no record in {}: {line}", path.display());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })?;
                records.push(Record { at, by: by.to_owned(), event });
            }
        }
        Ok(records)
    }
}

fn parse(line: &str) -> Option<(Duration, Event)> {
    let (at, event) = line.split_once(' ')?;
    Some((Duration::from_micros(at.parse().ok()?), serde_json::from_str(event).ok()?))
}
