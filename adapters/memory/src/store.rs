use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use anybroker_core::{Destination, ErrorKind, Result};

use crate::connection::error;
use crate::destination::StoredDestination;

/// The destinations of one broker. A name is a queue or a topic, never both.
#[derive(Default)]
pub(crate) struct Store {
    destinations: RwLock<HashMap<String, Arc<StoredDestination>>>,
}

impl Store {
    /// The broker of this name, which stays when its connections are gone.
    pub(crate) fn named(name: String) -> Arc<Self> {
        static NAMED: LazyLock<Mutex<HashMap<String, Arc<Store>>>> = LazyLock::new(Mutex::default);
        NAMED.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone()
    }

    /// # Errors
    /// `NotFound`.
    pub(crate) fn find(&self, destination: &Destination) -> Result<Arc<StoredDestination>> {
        self.look_up(destination.name()).ok_or_else(|| {
            let kind = if destination.is_topic() { "topic" } else { "queue" };
            let name = destination.name();
            error(ErrorKind::NotFound, format!("{kind} {name:?} does not exist: declare it first"))
        })
    }

    /// Finds the destination or makes it.
    ///
    /// # Errors
    /// `Invalid` for a name that breaks the rules.
    pub(crate) fn create(&self, destination: &Destination) -> Result<Arc<StoredDestination>> {
        if let Some(stored) = self.look_up(destination.name()) {
            return Ok(stored);
        }
        destination.validate()?;
        let mut destinations = self.destinations.write().unwrap_or_else(PoisonError::into_inner);
        let stored = destinations
            .entry(destination.name().to_owned())
            .or_insert_with(|| Arc::new(StoredDestination::new(destination.clone())));
        Ok(stored.clone())
    }

    pub(crate) fn all(&self) -> Vec<Arc<StoredDestination>> {
        let destinations = self.destinations.read().unwrap_or_else(PoisonError::into_inner);
        destinations.values().cloned().collect()
    }

    fn look_up(&self, name: &str) -> Option<Arc<StoredDestination>> {
        let destinations = self.destinations.read().unwrap_or_else(PoisonError::into_inner);
        destinations.get(name).cloned()
    }
}
