use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anybroker_core::{Declare, Destination, Error, ErrorKind, Result};

use crate::config::Config;
use crate::destination::StoredDestination;
use crate::store::Store;

/// One way in to a store: what `connect` made and `close` ends.
pub(crate) struct Connection {
    pub(crate) store: Arc<Store>,
    pub(crate) config: Config,
    closed: AtomicBool,
}

impl Connection {
    pub(crate) fn new(store: Arc<Store>, config: Config) -> Self {
        Self { store, config, closed: AtomicBool::new(false) }
    }

    /// # Errors
    /// `Closed` after [`close`](Self::close).
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(error(ErrorKind::Closed, "the broker is closed: connect again"));
        }
        Ok(())
    }

    /// Ends everything that this connection has under way.
    pub(crate) fn close(self: &Arc<Self>) {
        self.closed.store(true, Ordering::Release);
        for destination in self.store.all() {
            destination.disconnect(self);
        }
    }

    /// The destination, created where the connection may do so.
    pub(crate) fn declare(&self, destination: &Destination) -> Result<Arc<StoredDestination>> {
        self.check_open()?;
        let stored = match self.config.declare {
            Declare::Create => self.store.create(destination)?,
            Declare::Verify | Declare::Off => self.store.find(destination)?,
        };
        stored.check_shape(destination)?;
        Ok(stored)
    }

    pub(crate) fn may_create(&self) -> bool {
        self.config.declare == Declare::Create
    }
}

pub(crate) fn error(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(kind, context).broker("memory")
}
