use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::case::{Case, Need};
use super::lab::{Lab, Steps};
use super::results::{self, Outcome};
use super::target::Target;
use super::{cases, child};

/// Cases at once, unless `--test-threads` says otherwise: they wait more than they compute.
const THREADS: usize = 8;

/// Held by what runs: exclusively by a case that needs to be alone, together by the others.
static RUNNING: RwLock<()> = RwLock::new(());

/// Runs every case against every target, with the arguments of `cargo test`.
pub fn main(targets: impl IntoIterator<Item = Target>) -> ExitCode {
    let targets: Vec<_> = targets.into_iter().collect();
    if let Some(code) = child::take_part(&targets) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let mut trials = Vec::new();
    for target in targets {
        for case in cases::all() {
            let target = target.clone();
            let name = format!("{}::{}", target.name, case.name);
            trials.push(Trial::ignorable_test(name, move || trial(&target, case)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(target: &Target, case: Case) -> Result<Completion, Failed> {
    // A case that panicked has left nothing half done in a lock without contents.
    let is_alone = matches!(case.need, Need::Alone);
    let _alone = is_alone.then(|| RUNNING.write().unwrap_or_else(PoisonError::into_inner));
    let _beside = (!is_alone).then(|| RUNNING.read().unwrap_or_else(PoisonError::into_inner));
    let outcome = match &target.mortal {
        Some(mortal) if matches!(case.need, Need::Restart) => {
            let _one_at_a_time = mortal.alone.lock().unwrap_or_else(PoisonError::into_inner);
            outcome(&Target { connect: mortal.connect.clone(), ..target.clone() }, case)
        }
        _ => outcome(target, case),
    };
    results::append(&target.name, case.name, &outcome);
    match outcome {
        Outcome::Passed => Ok(Completion::Completed),
        Outcome::Ignored(reason) => Ok(Completion::ignored_with(reason)),
        Outcome::Failed(reason) => Err(reason.into()),
    }
}

fn outcome(target: &Target, case: Case) -> Outcome {
    let runtime = match Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Outcome::Failed(format!("no runtime: {error}")),
    };
    let steps = Steps::default();
    let ending = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { timeout(case.deadline, run(target, case, steps.clone())).await })
    }));
    // What a failed case left running must not hold up the others.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ending {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_elapsed)) => {
            Outcome::Failed(format!("not done after {:?}, at: {steps}", case.deadline))
        }
        Err(panic) => Outcome::Failed(format!("{}, at: {steps}", message(&*panic))),
    }
}

async fn run(target: &Target, case: Case, steps: Steps) -> Outcome {
    let lab = match Lab::open(target, steps.clone()).await {
        Ok(lab) => lab,
        Err(error) => return Outcome::Failed(format!("cannot connect: {error}")),
    };
    if let Some(reason) = case.need.missing(target, lab.broker().capabilities()) {
        return Outcome::Ignored(reason);
    }
    let broker = lab.broker().clone();
    let checked = (case.run)(lab).await;
    // The case may have closed it; what counts here is that nothing is left open.
    let _ = broker.close().await;
    match checked {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error}, at: {steps}")),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panicked")
}
