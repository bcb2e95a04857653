use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use anybroker::BoxError;

/// What was measured, a line each.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Line>);

#[derive(Debug)]
struct Line {
    name: String,
    ours: f64,
    bare: Option<f64>,
    goal: Goal,
}

/// What a line has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// A ratio to the bare client.
    Ratio(f64),
    /// Messages per second.
    Rate(f64),
    /// Nothing: it is there to be seen.
    None,
}

impl Table {
    /// Adds a line; rates in messages per second.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        ours: f64,
        bare: Option<f64>,
        goal: Goal,
    ) {
        let line = Line { name: name.into(), ours, bare, goal };
        eprintln!("{line}");
        self.0.push(line);
    }

    pub(crate) fn reaches_goals(&self) -> bool {
        self.0.iter().all(Line::reaches_goal)
    }
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        self.bare.map(|bare| self.ours / bare)
    }

    fn reaches_goal(&self) -> bool {
        match self.goal {
            Goal::Ratio(goal) => self.ratio().is_some_and(|ratio| ratio >= goal),
            Goal::Rate(goal) => self.ours >= goal,
            Goal::None => true,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<46} {:>11.0}/s", self.name, self.ours)?;
        match self.bare {
            Some(bare) => write!(f, " {:>11.0}/s {:>6.2}", bare, self.ours / bare)?,
            None => write!(f, " {:>13} {:>6}", "–", "–")?,
        }
        let met = if self.reaches_goal() { "reached" } else { "MISSED" };
        match self.goal {
            Goal::Ratio(goal) => write!(f, "  ratio ≥ {goal}: {met}"),
            Goal::Rate(goal) => write!(f, "  ≥ {goal:.0}/s: {met}"),
            Goal::None => Ok(()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<46} {:>13} {:>13} {:>6}  goal", "", "anybroker", "bare client", "ratio")?;
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Runs ours and the bare client in turn, `rounds` times, and answers the median rate of each.
///
/// In turn, so that what the machine does meanwhile meets both, and each as often before the other
/// as after it: what the first leaves for the server to clear up slows down the second.
pub(crate) async fn in_turn<A, B>(
    rounds: usize,
    mut ours: impl FnMut() -> A,
    mut bare: impl FnMut() -> B,
) -> Result<(f64, f64), BoxError>
where
    A: Future<Output = Result<f64, BoxError>>,
    B: Future<Output = Result<f64, BoxError>>,
{
    let (mut our_rates, mut bare_rates) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let ours_first = !round.is_multiple_of(2);
        if ours_first {
            our_rates.push(ours().await?);
        }
        bare_rates.push(bare().await?);
        if !ours_first {
            our_rates.push(ours().await?);
        }
    }
    Ok((median(our_rates), median(bare_rates)))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "a count of messages is far below 2^52")]
pub(crate) fn rate(messages: usize, started: Instant) -> f64 {
    messages as f64 / started.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}
