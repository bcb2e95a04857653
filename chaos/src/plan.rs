use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;

use crate::fault::{Fault, Place};

/// A fault at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Since the faults began.
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    /// How long it lasts before it is healed.
    pub(crate) hold: Duration,
    /// What else is left to chance: which process, how far.
    pub(crate) chance: u64,
}

/// What decides a plan.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) fault: Fault,
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    /// What every fault lasts, instead of a time by chance.
    pub(crate) hold: Option<Duration>,
    /// What cannot be done here.
    pub(crate) impossible: Vec<Fault>,
}

/// Nothing goes wrong until everything runs.
const CALM: Duration = Duration::from_secs(3);

impl Wish {
    /// The faults of a place in their order. The same wish is the same plan.
    pub(crate) fn plan(&self, place: Place) -> Vec<Step> {
        let faults: Vec<_> = Fault::value_variants()
            .iter()
            .filter(|fault| fault.place() == Some(place) && self.draws(**fault))
            .collect();
        // Each place has numbers of its own, so that what is drawn for one does not shift the other.
        let mut rng = Rng::with_seed(self.seed ^ (place as u64 + 1));
        let mut steps = Vec::new();
        let mut at = CALM + millis(&mut rng, 0..2_000);
        while !faults.is_empty() && at < self.time {
            let fault = *faults[rng.usize(..faults.len())];
            let hold = fault.hold(&mut rng);
            let hold = self.hold.filter(|_| !hold.is_zero()).unwrap_or(hold);
            steps.push(Step { at, fault, hold, chance: rng.u64(..) });
            // Some come while others still echo, and some after everything has settled.
            let long = rng.u8(..4) == 0;
            let gap = if long { 10_000..16_000 } else { 500..5_000 };
            at += hold + millis(&mut rng, gap);
        }
        steps
    }

    fn draws(&self, fault: Fault) -> bool {
        match self.fault {
            Fault::Mix => fault != Fault::WipeBroker && !self.impossible.contains(&fault),
            wanted => fault == wanted,
        }
    }
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn wish(fault: Fault, seed: u64) -> Wish {
        let time = Duration::from_mins(10);
        Wish { fault, seed, time, hold: None, impossible: Vec::new() }
    }

    fn kinds(wish: &Wish) -> BTreeSet<Fault> {
        let plans = [Place::Broker, Place::Processes].map(|place| wish.plan(place));
        plans.concat().into_iter().map(|step| step.fault).collect()
    }

    #[test]
    fn a_seed_replays() {
        for place in [Place::Broker, Place::Processes] {
            let plan = wish(Fault::Mix, 7).plan(place);
            assert_eq!(plan, wish(Fault::Mix, 7).plan(place));
            assert_ne!(plan, wish(Fault::Mix, 8).plan(place));
        }
    }

    #[test]
    fn steps_of_a_place_follow_each_other() {
        for seed in 0..20 {
            let plan = wish(Fault::Mix, seed).plan(Place::Broker);
            assert!(plan.iter().all(|step| step.at >= CALM));
            assert!(plan.windows(2).all(|pair| pair[0].at + pair[0].hold < pair[1].at));
        }
    }

    #[test]
    fn the_mix_has_everything_that_loses_no_data() {
        let mut all: BTreeSet<_> = Fault::value_variants().iter().copied().collect();
        let left_out = [Fault::Mix, Fault::None, Fault::WipeBroker];
        all.retain(|fault| !left_out.contains(fault));
        let drawn = (0..5).flat_map(|seed| kinds(&wish(Fault::Mix, seed))).collect();
        assert_eq!(all, drawn);
        let impossible = vec![Fault::Clock];
        assert!(!kinds(&Wish { impossible, ..wish(Fault::Mix, 1) }).contains(&Fault::Clock));
    }

    #[test]
    fn a_fault_that_is_named_comes_alone() {
        for fault in Fault::value_variants() {
            if fault.place().is_some() {
                assert_eq!(kinds(&wish(*fault, 3)), BTreeSet::from([*fault]));
            }
        }
        assert!(kinds(&wish(Fault::None, 3)).is_empty());
    }

    #[test]
    fn holds_are_shorter_and_longer_than_timeouts_unless_given() {
        let holds = |wish: Wish| wish.plan(Place::Broker).into_iter().map(|step| step.hold);
        let (short, long) = (Duration::from_secs(2), Duration::from_secs(9));
        assert!(holds(wish(Fault::StopBroker, 1)).any(|hold| hold < short));
        assert!(holds(wish(Fault::StopBroker, 1)).any(|hold| hold >= long));
        let hold = Some(Duration::from_mins(1));
        assert!(holds(Wish { hold, ..wish(Fault::StopBroker, 1) }).all(|held| Some(held) == hold));
    }
}
