use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::Error;

/// A server as a process group of its own, with its output in `server.log`.
#[derive(Debug)]
pub(super) struct Process {
    leader: Child,
    group_file: PathBuf,
}

impl Process {
    pub(super) fn spawn(mut command: Command, folder: &Path) -> Result<Self, Error> {
        let log = folder.join("server.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::io(format!("cannot write {}", log.display())))?;
        let errors = log.try_clone().map_err(Error::io("cannot share the log"))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let leader = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("cannot start {program}")))?;
        let group_file = folder.join("group");
        let process = Self { leader, group_file };
        match fs::write(&process.group_file, format!("{}\n", process.group())) {
            Ok(()) => Ok(process),
            Err(error) => {
                process.kill();
                Err(Error::new(format!("cannot note the process: {error}")))
            }
        }
    }

    pub(super) fn group(&self) -> u32 {
        self.leader.id()
    }

    /// Leaves an ended leader unwaited for, so that its number stays ours until [`kill`](Self::kill)
    /// has signalled the rest of the group.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(Pid::from_child(&self.leader)), options), Ok(None))
    }

    /// Stops it, and waits until no thread of it runs any more.
    pub(super) fn pause(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        let end = Instant::now() + Duration::from_secs(10);
        while self.runs() {
            if Instant::now() > end {
                return Err(Error::new("the server goes on after SIGSTOP"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether a thread of the group is not stopped, where the system shows that.
    fn runs(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        let tasks = processes.flatten().filter_map(|process| {
            self.is_of_group(&process.path()).then(|| fs::read_dir(process.path().join("task")))
        });
        tasks.flatten().flatten().flatten().any(|task| {
            let state = stat(&task.path()).and_then(|fields| fields.first().cloned());
            state.is_some_and(|state| !matches!(&*state, "T" | "Z" | "X"))
        })
    }

    fn is_of_group(&self, process: &Path) -> bool {
        let group = self.group().to_string();
        stat(process).is_some_and(|fields| fields.get(2) == Some(&group))
    }

    pub(super) fn resume(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    pub(super) fn kill(mut self) {
        let _ = self.signal(Signal::KILL);
        let _ = self.leader.wait();
        let _ = fs::remove_file(&self.group_file);
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        kill_process_group(Pid::from_child(&self.leader), signal)
            .map_err(|error| Error::new(format!("cannot signal the server: {error}")))
    }
}

/// State, parent and group of a process or thread, and more; `None` once it is gone.
fn stat(path: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    // The name before may hold anything.
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// The last lines of `server.log`, which is what a failed start is explained with.
pub(super) fn log_tail(folder: &Path) -> String {
    let log = fs::read(folder.join("server.log")).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&log))
}

/// Enough to reach, past the crash reports of a failed start of RabbitMQ, the line that says why.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(100)..].join("\n")
}

/// Everything that a program printed, when it succeeds and as the reason when it does not.
pub(super) fn output_of(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let Output { status, mut stdout, stderr } = output;
    if !status.success() {
        stdout.extend(stderr);
        return Err(last_lines(&String::from_utf8_lossy(&stdout)));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
