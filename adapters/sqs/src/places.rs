use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A place for each delivery that is held, or may come with a receive that is under way.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    count: Mutex<Count>,
}

/// How many places there are, and how many there are to be. One that is too many goes when somebody
/// would take it.
#[derive(Debug)]
struct Count {
    now: usize,
    wanted: usize,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        let count = count.max(1);
        let free = Arc::new(Semaphore::new(count));
        Self { free, count: Mutex::new(Count { now: count, wanted: count }) }
    }

    pub(crate) fn set(&self, wanted: usize) {
        let mut count = self.count();
        count.wanted = wanted.max(1);
        if let Some(more) = count.wanted.checked_sub(count.now) {
            count.now = count.wanted;
            self.free.add_permits(more);
        }
    }

    /// Takes a place as soon as one is free.
    pub(crate) async fn take(&self) -> OwnedSemaphorePermit {
        loop {
            let Ok(place) = Arc::clone(&self.free).acquire_owned().await else {
                unreachable!("nobody closes the semaphore")
            };
            if let Some(place) = self.keep(place) {
                return place;
            }
        }
    }

    /// Takes a place if one is free.
    pub(crate) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let place = Arc::clone(&self.free).try_acquire_owned().ok()?;
            if let Some(place) = self.keep(place) {
                return Some(place);
            }
        }
    }

    fn keep(&self, place: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        let mut count = self.count();
        if count.now <= count.wanted {
            return Some(place);
        }
        count.now -= 1;
        place.forget();
        None
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_are_too_many_go_once_they_are_free() {
        let places = Places::new(2);
        let held: Vec<_> = std::iter::from_fn(|| places.try_take()).collect();
        assert_eq!(held.len(), 2);
        places.set(3);
        let third = places.try_take().unwrap();
        places.set(1);
        drop(held);
        assert!(places.try_take().is_none(), "one is out");
        drop(third);
        let last = places.try_take();
        assert!(last.is_some() && places.try_take().is_none());
        places.set(2);
        assert!(places.try_take().is_some());
    }
}
