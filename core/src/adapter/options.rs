use std::time::Duration;

use super::{Outage, patiently, pause};
use crate::{BrokerUrl, Declare, Result, RetryClass, name};

/// The options that mean the same on every broker. An adapter keeps them in its settings, beside
/// its own, and its builder has a [method](crate::adapter::option_methods) for each.
///
/// # Defaults
/// No prefix, `declare=create`, one attempt to connect, 30 s for a publish.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// What stands before every portable name.
    pub prefix: Option<String>,
    /// Who creates what is used.
    pub declare: Declare,
    /// Whether connecting goes on until it works.
    pub wait: bool,
    /// How long a publish may take.
    pub publish_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let publish_timeout = Duration::from_secs(30);
        Self { prefix: None, declare: Declare::Create, wait: false, publish_timeout }
    }
}

impl Options {
    /// Takes `prefix`, `declare`, `connect` and `publish-timeout` out of a URL.
    ///
    /// # Errors
    /// `Config` for a value that does not parse.
    pub fn read(&mut self, url: &mut BrokerUrl) -> Result<()> {
        if let Some(prefix) = url.option("prefix", "a name such as dev")? {
            self.prefix = Some(prefix);
        }
        if let Some(declare) = url.declare()? {
            self.declare = declare;
        }
        if let Some(wait) = url.choice("connect", &[("once", false), ("wait", true)])? {
            self.wait = wait;
        }
        if let Some(timeout) = url.duration("publish-timeout")? {
            self.publish_timeout = timeout;
        }
        Ok(())
    }

    /// Checks the prefix.
    ///
    /// # Errors
    /// `Invalid` for one that could not begin a name.
    pub fn validate(&self) -> Result<()> {
        match &self.prefix {
            Some(prefix) => name::check("prefix", prefix),
            None => Ok(()),
        }
    }

    /// Connects: once, or with `connect=wait` until it works or cannot ever.
    ///
    /// # Errors
    /// Those of `run`.
    pub async fn connect<T, F>(&self, run: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let (mut failures, outage) = (0, Outage::new("connect"));
        loop {
            match run().await {
                Err(error) if self.wait && error.retry_class() != RetryClass::Permanent => {
                    outage.goes_on(&error);
                    failures += 1;
                    pause(failures).await;
                }
                result => {
                    outage.ends();
                    return result;
                }
            }
        }
    }

    /// Runs an operation again while it fails for now, for no longer than a publish may take; see
    /// [`patiently`].
    ///
    /// # Errors
    /// Those of `run`, and `Timeout`.
    pub async fn within<T, F>(&self, operation: &'static str, run: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        patiently(self.publish_timeout, operation, run).await
    }
}

/// Gives a builder, inside its `impl`, the methods `prefix`, `declare`, `wait_for_broker` and
/// `publish_timeout`. The builder is a tuple whose first field has a field `options`; the two texts
/// say what joins prefix and name, and what several environments share.
///
/// ```
/// # use anybroker_core::adapter::{Options, option_methods};
/// struct Settings { options: Options }
/// /// Sets up a connection.
/// pub struct MyBuilder(Settings);
/// impl MyBuilder {
///     option_methods!("a dot", "a server");
/// }
/// ```
#[macro_export]
#[doc(hidden)]
macro_rules! __adapter_option_methods {
    ($joint:literal, $shared:literal) => {
        #[doc = concat!("Puts `prefix` and ", $joint, " before every name that is not native,")]
        #[doc = concat!("so that several environments can share ", $shared, ".")]
        pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
            self.0.options.prefix = Some(prefix.into());
            self
        }

        /// Sets who creates what is used; [`Declare::Create`]($crate::Declare) unless set.
        pub fn declare(mut self, declare: $crate::Declare) -> Self {
            self.0.options.declare = declare;
            self
        }

        /// Keeps trying until the broker answers, instead of failing at the first attempt.
        pub fn wait_for_broker(mut self) -> Self {
            self.0.options.wait = true;
            self
        }

        /// Sets how long a publish may take, waiting for a connection included; 30 s unless set.
        pub fn publish_timeout(mut self, timeout: ::std::time::Duration) -> Self {
            self.0.options.publish_timeout = timeout;
            self
        }
    };
}
