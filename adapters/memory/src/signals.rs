use std::task::Waker;

use anybroker_core::{Confirmer, Result};

/// Whom to wake and what to answer once the lock is released: to wake, or even to drop, a waker runs
/// other people's code. One that is replaced is woken too, which does no harm.
///
/// Make it before taking the lock, so that it is dropped, and sends, after it.
#[derive(Default)]
pub(crate) struct Signals {
    wakers: Vec<Waker>,
    answers: Vec<(Confirmer, Result<()>)>,
}

impl Signals {
    pub(crate) fn wake(&mut self, waker: impl IntoIterator<Item = Waker>) {
        self.wakers.extend(waker);
    }

    pub(crate) fn answer(&mut self, confirmer: Confirmer, result: Result<()>) {
        self.answers.push((confirmer, result));
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
        self.answers.drain(..).for_each(|(confirmer, result)| confirmer.confirm(result));
    }
}
