use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use anybroker::BoxError;
use clap::ValueEnum;

use crate::server::Broker;

/// How many runs share the machine.
const AT_ONCE: usize = 2;

/// Runs this program for each broker, with the same arguments.
pub(crate) fn run() -> Result<ExitCode, BoxError> {
    let all: Vec<_> =
        Broker::value_variants().iter().copied().filter(|one| *one != Broker::All).collect();
    let left = Mutex::new(all.into_iter());
    let results = thread::scope(|scope| {
        let runs: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| run_some(&left))).collect();
        runs.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut code = 0;
    for result in results {
        code = code.max(result.map_err(|_| "a run panicked")??);
    }
    Ok(ExitCode::from(code))
}

/// Runs one broker after the other until none is left; answers the worst code.
fn run_some(left: &Mutex<impl Iterator<Item = Broker>>) -> Result<u8, BoxError> {
    let mut worst = 0;
    loop {
        let next = left.lock().map_err(|_| "a run panicked")?.next();
        let Some(broker) = next else { return Ok(worst) };
        let name = format!("{broker:?}").to_lowercase();
        let arguments = std::env::args_os().skip(1);
        let arguments = arguments.map(|one| if one == "all" { name.clone().into() } else { one });
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (out, errors) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(|| pass_on(&name, errors));
            pass_on(&name, out);
        });
        let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2);
        worst = worst.max(code);
    }
}

/// Prints each line with the name of its broker before it.
fn pass_on(name: &str, output: Option<impl Read>) {
    let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines());
    for line in lines.map_while(Result::ok) {
        println!("{name:>8} | {line}");
    }
}
