//! The example `migrate` moves a service under load, and is killed (-9) before the switch, during
//! it, and during the drain: nothing is lost, nothing is handled twice.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anybroker::BoxError;
use libtest_mimic::{Arguments, Trial};

#[expect(dead_code, reason = "the example's own entry")]
#[path = "../examples/migrate/main.rs"]
mod migrate;

type Checked<T = ()> = Result<T, BoxError>;

/// Tells this program, started once more, to be the example.
const EXAMPLE: &str = "ANYBROKER_TEST_EXAMPLE";

const PATIENCE: Duration = Duration::from_mins(1);

/// What is moved, and where: the variable with the URL, and options for the test.
type Side = (&'static str, &'static str);
const PAIRS: &[[Side; 2]] = &[
    [("ANYBROKER_RABBITMQ_310_URL", ""), ("ANYBROKER_RABBITMQ_43_URL", "")],
    // A killed process is a member of its group for as long as its session.
    #[cfg(feature = "kafka")]
    [("ANYBROKER_RABBITMQ_43_URL", ""), ("ANYBROKER_KAFKA_URL", "&session-timeout=6s")],
    #[cfg(feature = "sqs")]
    [("ANYBROKER_RABBITMQ_43_URL", ""), ("ANYBROKER_SQS_URL", "")],
    #[cfg(all(feature = "redis", feature = "sqs"))]
    [("ANYBROKER_SQS_URL", ""), ("ANYBROKER_REDIS_8_URL", "")],
];

fn main() -> Checked<ExitCode> {
    if std::env::var_os(EXAMPLE).is_some() {
        return example();
    }
    let trials = PAIRS.iter().map(|&[from, to]| {
        let name = format!("{}_to_{}", from.0, to.0).replace("ANYBROKER_", "").replace("_URL", "");
        let name = format!("a_killed_move_loses_nothing::{}", name.to_lowercase());
        Trial::test(name, move || Ok(a_killed_move_loses_nothing(from, to)?))
    });
    Ok(libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code())
}

/// The example, which ends with its input, and so with the test, whatever ends that.
#[tokio::main]
async fn example() -> Checked<ExitCode> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    migrate::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn a_killed_move_loses_nothing(from: Side, to: Side) -> Checked {
    let lab = Lab::new(from, to)?;
    // Before the switch, with something of everything on the old broker.
    let serving = lab.start("serve")?;
    lab.until(500)?;
    serving.kill()?;

    // During the switch: some were sent to the one broker, some to the other.
    let serving = lab.start("serve")?;
    let published = lab.until(lab.published() + 300)?;
    assert!(!lab.start("drain")?.finish()?.0, "a drain before the switch is refused");
    assert!(lab.start("switch to")?.finish()?.0);
    lab.until(published + 1)?;
    serving.kill()?;
    assert!(lab.start("switch to")?.finish()?.0, "a step may be repeated");
    let serving = lab.start("serve")?;
    lab.until(published + 300)?;

    // During the drain: the one that moves, and the service.
    let mut draining = lab.start("drain")?;
    draining.says("dead letter order-")?;
    draining.says("draining: ")?;
    // Anywhere in the first messages that are moved.
    let moment = Duration::from_micros(u64::from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_micros() % 100_000,
    ));
    std::thread::sleep(moment);
    draining.kill()?;
    serving.kill()?;
    let serving = lab.start("serve")?;
    let (drained, said) = lab.start("drain")?.finish()?;
    assert!(drained && said.contains("\ndrained: "), "{said}");
    lab.until(lab.published() + 100)?;

    let (is_right, said) = serving.terminate()?;
    let sum = said.lines().last().unwrap_or_default().to_owned();
    println!("{} to {}, drain killed after {moment:?}: {sum}", from.0, to.0);
    let ledger = lab.ledger()?;
    let count = |what| ledger.lines().filter(|line| line.starts_with(what)).count();
    let published = count("published ");
    let handled = ledger.lines().filter(|line| line.starts_with("handled "));
    let once: std::collections::HashSet<_> = handled.collect();
    assert_eq!(once.len(), count("handled "), "none is handled twice");
    let duplicates = count("duplicate ");
    assert!(duplicates > 0, "some came twice");
    let expected =
        format!("published {published} · handled {published} · duplicates {duplicates} · lost 0");
    assert_eq!((sum, is_right), (expected, true));
    let (is_right, said) = lab.start("status")?.finish()?;
    let empty = said.lines().any(|line| {
        line.starts_with("old: ready 0 ") && line.ends_with(" · delayed 0 · dead letters 0")
    });
    assert!(is_right && empty, "{said}");
    Ok(())
}

/// The example's processes, which share a folder, and names that nobody else uses.
struct Lab {
    folder: PathBuf,
    urls: [(&'static str, String); 2],
}

impl Lab {
    fn new(from: Side, to: Side) -> Checked<Self> {
        let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        let url = |(variable, options): Side| {
            std::env::var(variable)
                .map(|url| format!("{url}?prefix=migrate{run}{options}"))
                .map_err(|_| format!("{variable} is not set: run `cargo xtask test`"))
        };
        let urls = [("ANYBROKER_FROM_URL", url(from)?), ("ANYBROKER_TO_URL", url(to)?)];
        Ok(Self { folder: std::env::temp_dir().join(format!("anybroker-migrate-{run}")), urls })
    }

    fn start(&self, command: &str) -> Checked<Process> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(command.split(' '))
            .env(EXAMPLE, "1")
            .env("ANYBROKER_STATE", &self.folder)
            .envs(self.urls.iter().map(|(name, url)| (name, url)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("its output is piped")?;
        Ok(Process { child, stdout: BufReader::new(stdout) })
    }

    fn ledger(&self) -> Checked<String> {
        Ok(std::fs::read_to_string(self.folder.join("ledger"))?)
    }

    /// How many are published; none before there is a ledger.
    fn published(&self) -> usize {
        let ledger = self.ledger().unwrap_or_default();
        ledger.lines().filter(|line| line.starts_with("published ")).count()
    }

    /// Waits until so many are published; answers how many are.
    fn until(&self, least: usize) -> Checked<usize> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.published() {
                published if published >= least => return Ok(published),
                published if Instant::now() > end => {
                    return Err(format!("{published} of {least} after {PATIENCE:?}").into());
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is left in the temporary folder harms nobody.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Waits for a line that begins so.
    fn says(&mut self, beginning: &str) -> Checked {
        let mut line = String::new();
        while !line.starts_with(beginning) {
            line.clear();
            if self.stdout.read_line(&mut line)? == 0 {
                return Err(format!("it ended before it said {beginning:?}").into());
            }
        }
        Ok(())
    }

    /// Ends it at once (`kill -9`).
    fn kill(mut self) -> Checked {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("it ended by itself: {status}").into());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end; answers whether it succeeded, and what it said.
    fn finish(mut self) -> Checked<(bool, String)> {
        let mut said = String::new();
        self.stdout.read_to_string(&mut said)?;
        Ok((self.child.wait()?.success(), said))
    }

    /// Asks it to end, as Ctrl-C does.
    fn terminate(self) -> Checked<(bool, String)> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.finish()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
