use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion};

use crate::{containers, results};

/// Which brokers, and by which variable the tests find each.
const BROKERS: [(RabbitMqVersion, &str); 2] = [
    (RabbitMqVersion::V3_10, "ANYBROKER_RABBITMQ_310_URL"),
    (RabbitMqVersion::V4_3, "ANYBROKER_RABBITMQ_43_URL"),
];

/// All tests. Without containers, the packages that can be built with a Docker client are built
/// without it: its 200 crates take longer than all others together.
const COMMANDS: &[&[&str]] = if cfg!(feature = "containers") {
    &[&["--workspace", "--all-features"]]
} else {
    &[
        &["--workspace", "--exclude=xtask", "--exclude=anybroker-testkit", "--all-features"],
        &["--package=xtask", "--package=anybroker-testkit"],
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

/// Runs all tests on all brokers. Ctrl-C ends it like any other program: the servers' reapers do the
/// rest.
pub(crate) fn run() -> Result<ExitCode, Box<dyn Error>> {
    if let Some(code) = containers::reenter()? {
        return Ok(code);
    }
    let mut servers = Vec::new();
    for (version, variable) in BROKERS {
        let began = Instant::now();
        let server = RabbitMq::new(version).find()?;
        let (version, took) = (server.version(), began.elapsed().as_secs_f64());
        eprintln!("RabbitMQ {version} answers ({took:.1} s)");
        servers.push((variable, server));
    }
    let urls: Vec<_> = servers.iter().map(|(variable, server)| (*variable, server.url())).collect();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    fs::create_dir_all(&target)?;
    let results = target.canonicalize()?.join("test-results.jsonl");
    fs::write(&results, "")?;
    let mut tally = Tally::default();
    for arguments in COMMANDS {
        cargo_test(arguments, &urls, &results, &mut tally)?;
    }
    drop(servers);
    let table = results::table(&fs::read_to_string(&results)?)?;
    println!("\n{table}\n{} passed, {} failed", tally.passed, tally.failed);
    let is_green = tally.failed == 0 && !tally.has_errors;
    Ok(if is_green { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
