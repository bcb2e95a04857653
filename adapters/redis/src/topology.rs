use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use anybroker_core::adapter::Suspects;
use anybroker_core::{Declare, Destination, Error, ErrorKind, Result, Start, Subscription};

use crate::error::{BROKER, error_of};
use crate::layout::{Group, Layout};
use crate::link::{Call, Link};
use crate::options::Settings;
use crate::scripts::DECLARE;

/// Knows what is stored where, and declares it.
pub(crate) struct Topology {
    pub(crate) link: Arc<Link>,
    pub(crate) settings: Arc<Settings>,
    /// What the names of this connection's consumers begin with.
    pub(crate) process: String,
    pub(crate) suspects: Suspects,
    destinations: RwLock<HashMap<Destination, Arc<Layout>>>,
}

impl Topology {
    pub(crate) fn new(link: Arc<Link>, settings: Arc<Settings>) -> Self {
        let process = format!("{:016x}", fastrand::u64(..));
        let suspects = Suspects::default();
        Self { link, settings, process, suspects, destinations: RwLock::default() }
    }

    /// Where the messages of a destination are.
    pub(crate) fn layout(&self, destination: &Destination) -> Result<Arc<Layout>> {
        let read = self.destinations.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = read.get(destination) {
            return Ok(Arc::clone(layout));
        }
        drop(read);
        let layout = Arc::new(Layout::new(destination, self.settings.options.prefix.as_deref())?);
        let mut destinations = self.destinations.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(destinations.entry(destination.clone()).or_insert(layout)))
    }

    pub(crate) fn group(&self, subscription: &Subscription) -> Result<Arc<Group>> {
        Ok(Arc::new(Group::new(subscription, self.settings.options.prefix.as_deref())?))
    }

    /// Declares a destination, once.
    ///
    /// # Cancel safety
    /// Dropped, it stops waiting; declaring goes on.
    pub(crate) async fn ensure(self: &Arc<Self>, layout: &Arc<Layout>) -> Result<()> {
        if layout.declared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (topology, declared) = (Arc::clone(self), Arc::clone(layout));
        let declare = || async move {
            if !declared.declared.load(Ordering::Relaxed) {
                topology.declare(&declared.destination).await?;
                declared.declared.store(true, Ordering::Relaxed);
            }
            Ok(())
        };
        layout.declaring.run(declare).await
    }

    /// Declares a destination; a queue with its one group, which keeps what comes before its first
    /// consumer.
    pub(crate) async fn declare(&self, destination: &Destination) -> Result<()> {
        let layout = Layout::new(destination, self.settings.options.prefix.as_deref())?;
        if destination.is_topic() {
            self.run(&layout, None, Start::New).await
        } else {
            let group = Group::of_queue(layout);
            self.run(&group.layout, Some(&group), Start::Earliest).await
        }
    }

    pub(crate) async fn declare_group(&self, group: &Group, start: Start) -> Result<()> {
        let start = if group.layout.destination.is_topic() { start } else { Start::Earliest };
        self.run(&group.layout, Some(group), start).await
    }

    async fn run(&self, layout: &Layout, group: Option<&Group>, start: Start) -> Result<()> {
        let mode = match self.settings.options.declare {
            Declare::Create => "create",
            Declare::Verify => "verify",
            Declare::Off => return Ok(()),
        };
        let mut call = Call::new(&DECLARE).key(&layout.meta());
        for stream in &layout.streams {
            call = call.key(stream);
        }
        for partition in group.iter().flat_map(|group| &group.partitions) {
            call = call.key(&partition.retry);
        }
        let group_shape = group.map(|group| if group.ordered { "ordered" } else { "unordered" });
        let call = call
            .arg(mode)
            .arg(layout.destination.shape())
            .arg(group.map_or("", |group| &group.name))
            .arg(group_shape.unwrap_or_default())
            .arg(if start == Start::Earliest { "0-0" } else { "$" })
            .arg(layout.streams.len());
        let (answer, found): (String, String) = self.link.run("declare", &call).await?;
        let name = layout.destination.name();
        let error = match &*answer {
            "ok" => return Ok(()),
            "missing" => return Err(missing("declare", &found)),
            "group" => {
                let group = group.map_or("", |group| &group.name);
                let what = format!("group {group:?} of {name:?}");
                Error::mismatch(&what, &found, group_shape.unwrap_or_default())
            }
            _ => Error::mismatch(&format!("{name:?}"), &found, &layout.destination.shape()),
        };
        Err(error.broker(BROKER))
    }
}

/// What is to be there and is not.
pub(crate) fn missing(operation: &'static str, name: &str) -> Error {
    let text = format!("{name:?} does not exist; declare it, or connect with declare=create");
    error_of(ErrorKind::NotFound, operation, text)
}
