use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::adapter::Options;
use anybroker_core::{BrokerUrl, Declare, Error, ErrorKind, Result};

use crate::MemoryBroker;
use crate::store::Store;

/// What a connection may be told; see the crate's documentation for URLs.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) capacity: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) declare: Declare,
    pub(crate) max_payload: usize,
}

/// Makes a [`MemoryBroker`] with other options than the default.
///
/// ```
/// # use anybroker_memory::MemoryBroker;
/// let broker = MemoryBroker::builder().capacity(1000).build();
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryBrokerBuilder {
    name: Option<String>,
    prefix: Option<String>,
    config: Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            capacity: 1_000_000,
            publish_timeout: Duration::from_secs(30),
            declare: Declare::Create,
            max_payload: 64 * 1024 * 1024,
        }
    }
}

impl MemoryBrokerBuilder {
    /// Connects to the broker of this name in the process, instead of making a fresh one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps apart what connections to one name declare and send under different prefixes. On the
    /// brokers outside of the process a prefix does so too.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Sets how many messages may wait or be delayed in a group before a send waits for room in
    /// it; 1,000,000 unless set, at least 1. What is given back or redriven always finds room, and
    /// dead letters do not count.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.capacity = capacity.max(1);
        self
    }

    /// Sets how long a send waits for room before it answers `Blocked`; 30 s unless set.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.config.publish_timeout = timeout;
        self
    }

    /// Sets who creates what is used; [`Declare::Create`] unless set.
    pub fn declare(mut self, declare: Declare) -> Self {
        self.config.declare = declare;
        self
    }

    /// Sets the largest payload, in bytes; 64 MiB unless set.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.config.max_payload = bytes;
        self
    }

    /// Makes the broker.
    pub fn build(self) -> Arc<MemoryBroker> {
        let store = match (self.name, self.prefix) {
            (Some(name), None) => Store::named(name),
            (Some(name), Some(prefix)) => Store::named(format!("{name}?prefix={prefix}")),
            (None, _) => Arc::default(),
        };
        MemoryBroker::open(store, self.config)
    }

    pub(crate) fn from_url(mut url: BrokerUrl) -> Result<Self> {
        if url.scheme() != "memory" {
            return Err(invalid(format!("the scheme is {}: write memory://", url.scheme())));
        }
        let mut options = Options::default();
        options.read(&mut url)?;
        options.validate().map_err(|error| invalid(error.to_string()))?;
        let (name, prefix) = (name(&url)?, options.prefix);
        let mut builder = Self { name, prefix, config: Config::default() };
        let config = &mut builder.config;
        (config.publish_timeout, config.declare) = (options.publish_timeout, options.declare);
        if let Some(capacity) = url.option::<NonZeroUsize>("capacity", "a number from 1")? {
            config.capacity = capacity.get();
        }
        if let Some(bytes) = url.option::<NonZeroUsize>("max-payload", "a number of bytes")? {
            config.max_payload = bytes.get();
        }
        url.finish()?;
        Ok(builder)
    }
}

/// A URL without a host names nothing; the default port shows whether one was given.
fn name(url: &BrokerUrl) -> Result<Option<String>> {
    let hosts = url.hosts(0).unwrap_or_default();
    let has_more = !url.path().is_empty() || url.user().is_some() || url.password().is_some();
    match hosts.as_slice() {
        [] if !has_more => Ok(None),
        [(name, 0)] if !has_more => Ok(Some(name.clone())),
        _ => Err(invalid("a memory URL is memory:// or memory://name, and then its options")),
    }
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, context).broker("memory").operation("connect")
}
