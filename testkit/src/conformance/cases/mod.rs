//! The cases, by what they are about.

mod attempts;
mod dead_letters;
mod declaring;
mod delays;
mod draining;
mod endings;
mod envelopes;
mod errors;
mod groups;
mod kills;
mod layers;
mod limits;
mod looking;
mod ordering;
mod processes;
mod receiving;
mod restarts;
mod settlement;
mod sharing;
mod volume;
mod workers;

use super::case::Case;

/// Every case, in the order in which they run.
pub(super) fn all() -> impl Iterator<Item = Case> {
    // The slow ones first, so that the quick ones fill the gaps; those that need the broker for
    // themselves last.
    [
        kills::CASES,
        processes::CASES,
        volume::CASES,
        layers::CASES,
        workers::CASES,
        sharing::CASES,
        endings::CASES,
        ordering::CASES,
        draining::CASES,
        delays::CASES,
        attempts::CASES,
        settlement::CASES,
        receiving::CASES,
        dead_letters::CASES,
        groups::CASES,
        envelopes::CASES,
        errors::CASES,
        declaring::CASES,
        looking::CASES,
        limits::CASES,
        restarts::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
}
