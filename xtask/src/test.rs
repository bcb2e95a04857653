use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anybroker_testkit::brokers::{RabbitMq, RabbitMqVersion, Server};

use crate::{containers, results};

/// Which brokers, and by which variable the tests find each.
const BROKERS: [(RabbitMqVersion, &str); 2] = [
    (RabbitMqVersion::V3_10, "ANYBROKER_RABBITMQ_310_URL"),
    (RabbitMqVersion::V4_3, "ANYBROKER_RABBITMQ_43_URL"),
];

/// Ctrl-C ends this process like any other: the servers' reapers do the rest.
pub(crate) fn run() -> Result<ExitCode, Box<dyn Error>> {
    if let Some(code) = containers::reenter()? {
        return Ok(code);
    }
    let mut servers = Vec::new();
    for (version, variable) in BROKERS {
        let began = Instant::now();
        let server = RabbitMq::new(version).find()?;
        let (version, took) = (server.version(), began.elapsed());
        eprintln!("RabbitMQ {version} answers ({:.1} s)", took.as_secs_f64());
        servers.push((variable, server));
    }
    let file = std::env::temp_dir().join(format!("anybroker-results-{}", std::process::id()));
    fs::write(&file, "")?;
    let tested = cargo_test(&servers, &file);
    drop(servers);
    let content = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    let (passed, failed, succeeded) = tested?;
    if !content.is_empty() {
        println!("\n{}", results::table(&content)?);
    }
    println!("{passed} passed, {failed} failed");
    Ok(if succeeded && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Passed and failed, and whether cargo is content: a test that does not build is in no count.
fn cargo_test(
    servers: &[(&str, Server)],
    results_file: &std::path::Path,
) -> Result<(u64, u64, bool), Box<dyn Error>> {
    let mut cargo = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--all-features", "--no-fail-fast"])
        .envs(servers.iter().map(|(variable, server)| (variable, server.url())))
        .env("ANYBROKER_TEST_RESULTS", results_file)
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut passed, mut failed) = (0, 0);
    let output = cargo.stdout.take().ok_or("cargo's output is piped")?;
    let mut stdout = std::io::stdout();
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    // Bytes, not lines of text: a test may print anything.
    while lines.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        if let Some(counts) = results::counts(&String::from_utf8_lossy(&line)) {
            passed += counts.0;
            failed += counts.1;
        }
        line.clear();
    }
    Ok((passed, failed, cargo.wait()?.success()))
}
