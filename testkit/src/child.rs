use std::io;
use std::process::{self, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A process that a test starts, stops and kills. It does not outlive its `Child`.
///
/// Its input is a pipe that ends with the `Child`, or by [`tell`](Self::tell): whoever is started
/// reads it to learn that it is to end, and so ends with its parent, whatever ends that.
#[derive(Debug)]
pub struct Child(process::Child);

impl Child {
    /// Starts it. Its output is what the command says, its input a pipe.
    ///
    /// # Errors
    /// Those of the command.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Ok(Self(command.stdin(Stdio::piped()).spawn()?))
    }

    /// How it has ended by itself, if it has.
    ///
    /// # Errors
    /// Those of the system.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Lets it stand still (SIGSTOP), connections and all.
    ///
    /// # Errors
    /// Those of the system.
    pub fn stop(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), Signal::STOP)?)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Those of the system.
    pub fn resume(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), Signal::CONT)?)
    }

    /// Tells it to end: its input ends.
    pub fn tell(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Ends it at once (`kill -9`).
    ///
    /// # Errors
    /// Those of the system.
    pub fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}
