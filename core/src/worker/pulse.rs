use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::report::Report;
use crate::adapter::Background;

/// How often the background thread looks whether a loop is still in the same step of a handler.
const LOOK: Duration = Duration::from_secs(1);

/// What other threads can see of a loop, also while a handler blocks its thread.
///
/// A step is one poll of one handler. It costs two relaxed stores and a relaxed load: only the
/// loop's own thread writes the count.
#[derive(Debug)]
pub(super) struct Pulse {
    subscription: String,
    /// Goes up when a step begins, and when it ends: odd within a step.
    steps: AtomicU64,
    /// Whether the step that goes on was reported to block its thread.
    blocks: AtomicBool,
    /// What the loop had done when it last stopped to wait.
    report: Mutex<Report>,
}

impl Pulse {
    pub(super) fn start(subscription: String) -> Arc<Self> {
        let pulse = Arc::new(Self {
            subscription,
            steps: AtomicU64::new(0),
            blocks: AtomicBool::new(false),
            report: Mutex::default(),
        });
        Background::spawn(watch(Arc::downgrade(&pulse)));
        pulse
    }

    pub(super) fn subscription(&self) -> &str {
        &self.subscription
    }

    /// Runs one step of a handler; `kind` names the type of its message.
    pub(super) fn step<T>(&self, kind: impl Fn() -> String, step: impl FnOnce() -> T) -> T {
        let begun = self.steps.load(Ordering::Relaxed) + 1;
        self.steps.store(begun, Ordering::Relaxed);
        let done = step();
        self.steps.store(begun + 1, Ordering::Relaxed);
        if self.blocks.load(Ordering::Relaxed) {
            self.blocks.store(false, Ordering::Relaxed);
            tracing::warn!(
                subscription = self.subscription,
                r#type = kind(),
                "this handler has blocked its thread; move what blocks to tokio::task::spawn_blocking"
            );
        }
        done
    }

    /// The step that goes on, if one does.
    pub(super) fn current_step(&self) -> Option<u64> {
        let steps = self.steps.load(Ordering::Relaxed);
        (!steps.is_multiple_of(2)).then_some(steps)
    }

    pub(super) fn note(&self, report: Report) {
        *self.lock() = report;
    }

    pub(super) fn noted(&self) -> Report {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says so while a step goes on for too long: it may never end.
async fn watch(pulse: Weak<Pulse>) {
    let mut before = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(pulse) = pulse.upgrade() else { return };
        let now = pulse.current_step();
        if now.is_some() && now == before && !pulse.blocks.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                subscription = pulse.subscription,
                "a handler of this subscription blocks its thread for over a second; the others of its loop stand still"
            );
        }
        before = now;
    }
}
