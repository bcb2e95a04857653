use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::Error;

/// Waits for the end of its input, which is the end of us, then removes the server and its folder.
///
/// `group` holds the process group of the server while it runs. Killed processes may write for a
/// moment longer, so that the folder is removed until it stays away.
const SCRIPT: &str = r#"
cat >/dev/null
if [ -n "$2" ]; then
    docker rm --force --volumes "$2"
elif read -r group <"$1/group"; then
    kill -s KILL -- "-$group"
fi
tries=0
while [ -e "$1" ] && [ "$tries" -lt 50 ]; do
    rm -rf -- "$1"
    [ -e "$1" ] && sleep 0.1
    tries=$((tries + 1))
done
"#;

/// A small process that outlives this one just long enough to take the server with it.
///
/// `Drop` runs neither for a `static`, nor after Ctrl-C, nor after kill -9: a pipe is closed by all
/// of them.
#[derive(Debug)]
pub(super) struct Reaper {
    process: Child,
    input: Option<ChildStdin>,
}

impl Reaper {
    pub(super) fn new(folder: &Path, container: Option<&str>) -> Result<Self, Error> {
        let mut process = Command::new("sh")
            .args(["-c", SCRIPT, "anybroker-reaper"])
            .arg(folder)
            .arg(container.unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's reach: Ctrl-C must end us, not what cleans up after us.
            .process_group(0)
            .spawn()
            .map_err(Error::io("cannot start sh"))?;
        let input = process.stdin.take();
        Ok(Self { process, input })
    }

    /// Lets the server live on.
    pub(super) fn dismiss(mut self) {
        // Before its input ends, or else it does its work.
        let _ = self.process.kill();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::Reaper;
    use crate::brokers::site::Site;

    #[test]
    fn dropped_reaper_takes_process_group_and_folder() {
        let site = Site::new().unwrap();
        let mut server = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        fs::write(site.folder.join("group"), format!("{}\n", server.id())).unwrap();
        drop(Reaper::new(&site.folder, None).unwrap());
        assert_eq!(server.wait().unwrap().signal(), Some(9));
        assert!(!site.folder.exists());
    }

    #[test]
    fn dismissed_reaper_leaves_everything() {
        let site = Site::new().unwrap();
        Reaper::new(&site.folder, None).unwrap().dismiss();
        assert!(site.folder.exists());
        fs::remove_dir(&site.folder).unwrap();
    }
}
