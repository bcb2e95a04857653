use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::entry::Entry;

/// Keeps messages of one key in order.
///
/// A key's lane exists while one of its messages is outside of it: ready, delayed or in flight.
/// The later ones are held in the lane until that one is settled for good. Messages without a key
/// pass by.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: HashMap<String, VecDeque<Held>>,
    held: usize,
}

/// A message, and when it may be handed out.
pub(crate) type Held = (Entry, Option<Instant>);

impl Lanes {
    /// Lets the message through if it is the first of its key, else holds it.
    pub(crate) fn enter(&mut self, held: Held) -> Option<Held> {
        let Some(key) = &held.0.envelope.key else { return Some(held) };
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.push_back(held);
            self.held += 1;
            return None;
        }
        self.lanes.insert(key.clone(), VecDeque::new());
        Some(held)
    }

    /// Ends the turn of the message that was let through, and lets the next one of its key through.
    pub(crate) fn leave(&mut self, left: &Entry) -> Option<Held> {
        let key = left.envelope.key.as_ref()?;
        let next = self.lanes.get_mut(key)?.pop_front();
        match next {
            Some(_) => self.held -= 1,
            None => drop(self.lanes.remove(key)),
        }
        next
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.held
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.lanes.values().flatten()
    }
}
