use std::time::Duration;

use tokio::time::Instant;

/// Above this part of a run the machine, and no fault, may be why something came late.
const MUCH: f64 = 0.5;

/// How long processes of this machine waited for a processor, by the kernel's own count.
#[derive(Debug)]
pub(crate) struct Pressure {
    since: Instant,
    waited: Option<Duration>,
}

impl Pressure {
    pub(crate) fn start() -> Self {
        Self { since: Instant::now(), waited: waited() }
    }

    /// What to know before a violation is believed; nothing where the kernel does not count.
    pub(crate) fn told(&self) -> Option<String> {
        let waited = waited()?.checked_sub(self.waited?)?;
        let part = waited.as_secs_f64() / self.since.elapsed().as_secs_f64().max(1.0);
        Some(text(part))
    }
}

fn text(part: f64) -> String {
    let warning = if part > MUCH {
        ": timeouts may have run out because of it; run it again on a machine that has more time"
    } else {
        ""
    };
    let percent = part * 100.0;
    format!("some process waited for a processor in {percent:.0} % of the time{warning}")
}

/// Since the machine started.
fn waited() -> Option<Duration> {
    read(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

/// Of what the kernel shows: <https://docs.kernel.org/accounting/psi.html>
fn read(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    let (_, micros) = some.rsplit_once("total=")?;
    micros.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read() {
        let shown = "some avg10=97.03 avg60=96.73 avg300=95.71 total=32303960605\n\
                     full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(read(shown), Some(Duration::from_micros(32_303_960_605)));
        assert_eq!(read(""), None);
    }

    #[test]
    fn a_machine_without_time_is_told() {
        assert!(text(0.97).contains("97 % of the time: timeouts"), "{}", text(0.97));
        assert!(text(0.2).ends_with("20 % of the time"), "{}", text(0.2));
    }
}
