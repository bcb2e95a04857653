use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use anybroker_testkit::brokers::Server;

use crate::servers::{Broker, KINDS, Kind};
use crate::{containers, results};

/// All tests. Without containers, the packages that can be built with a Docker client are built
/// without it: its 200 crates take longer than all others together.
const COMMANDS: &[&[&str]] = if cfg!(feature = "containers") {
    &[&["--workspace", "--all-features"]]
} else {
    &[
        &[
            "--workspace",
            "--exclude=xtask",
            "--exclude=anybroker-testkit",
            "--exclude=anybroker-chaos",
            "--all-features",
        ],
        &["--package=xtask", "--package=anybroker-testkit", "--package=anybroker-chaos"],
    ]
};

/// What the test programs and cargo itself say.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// A test that does not build is in no count.
    has_errors: bool,
}

/// Runs the tests, on all brokers or on some. Ctrl-C ends it like any other program: the servers'
/// reapers do the rest.
pub(crate) fn run(brokers: &[Broker]) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(code) = containers::reenter()? {
        return Ok(code);
    }
    let adapters: Vec<_> = brokers.iter().map(|broker| broker.adapter()).collect();
    let servers = start(&adapters)?;
    let mut urls = Vec::new();
    for (kind, server) in &servers {
        urls.extend(kind.variables.iter().map(|variable| (*variable, server.url())));
    }
    // The first of a broker has the last word on the variable that they share.
    urls.reverse();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    fs::create_dir_all(&target)?;
    let results = target.canonicalize()?.join("test-results.jsonl");
    fs::write(&results, "")?;
    let mut tally = Tally::default();
    if adapters.is_empty() {
        for arguments in COMMANDS {
            cargo_test(arguments, &urls, &results, &mut tally)?;
        }
    } else {
        let packages: Vec<_> = ["core"].into_iter().chain(adapters).collect();
        let packages: Vec<_> =
            packages.iter().map(|name| format!("--package=anybroker-{name}")).collect();
        let mut arguments: Vec<_> = packages.iter().map(String::as_str).collect();
        arguments.push("--all-features");
        cargo_test(&arguments, &urls, &results, &mut tally)?;
    }
    let ended = ended(&servers);
    drop(servers);
    let results = fs::read_to_string(&results)?;
    let lost = results::lost(&results)?;
    println!("\n{}", results::table(&results)?);
    for case in &lost {
        println!("{case}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    for server in &ended {
        println!("{server}");
    }
    let is_green = tally.failed == 0 && !tally.has_errors && lost.is_empty() && ended.is_empty();
    Ok(if is_green { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The servers that these adapters are tested on, or all; started at once.
fn start(adapters: &[&str]) -> Result<Vec<(&'static Kind, Server)>, Box<dyn Error>> {
    let kinds: Vec<_> = KINDS
        .iter()
        .filter(|kind| kind.is_tested)
        .filter(|kind| adapters.is_empty() || adapters.contains(&kind.broker.adapter()))
        .collect();
    thread::scope(|scope| {
        let starts: Vec<_> = kinds
            .iter()
            .map(|kind| {
                scope.spawn(|| {
                    let began = Instant::now();
                    let server = (kind.find)()?;
                    let (version, took) = (server.version(), began.elapsed().as_secs_f64());
                    eprintln!("{} answers ({version}, {took:.1} s)", kind.name);
                    Ok::<_, anybroker_testkit::brokers::Error>(server)
                })
            })
            .collect();
        let servers: Vec<_> = starts.into_iter().map(thread::ScopedJoinHandle::join).collect();
        let mut found = Vec::new();
        for (kind, server) in kinds.into_iter().zip(servers) {
            found.push((kind, server.map_err(|_| "the start of a server panicked")??));
        }
        Ok(found)
    })
}

/// What fails because a server is gone does not say why it went.
fn ended(servers: &[(&Kind, Server)]) -> Vec<String> {
    let ended =
        servers.iter().filter_map(|(kind, server)| Some((kind.name, server.log_if_ended()?)));
    ended
        .map(|(name, log)| format!("{name} ended during the tests; its log ends in:\n{log}"))
        .collect()
}

fn cargo_test(
    arguments: &[&str],
    urls: &[(&str, &str)],
    results: &Path,
    tally: &mut Tally,
) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env!("CARGO"))
        .args(["test", "--no-fail-fast"])
        .args(arguments)
        .envs(urls.iter().copied())
        .env("ANYBROKER_TEST_RESULTS", results)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(cargo.stdout.take().ok_or("cargo's output is piped")?);
    let mut stdout = std::io::stdout();
    let mut line = Vec::new();
    // Bytes, since a test may print anything.
    while output.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        if let Some((passed, failed)) = results::counts(&String::from_utf8_lossy(&line)) {
            tally.passed += passed;
            tally.failed += failed;
        }
        line.clear();
    }
    tally.has_errors |= !cargo.wait()?.success();
    Ok(())
}
