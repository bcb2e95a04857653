use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anybroker_core::{BoxError, Broker};

/// A broker to run the suite against: how it is reached, and what else a test may do to it.
#[derive(Clone)]
pub struct Target {
    pub(super) name: Cow<'static, str>,
    pub(super) connect: Arc<Connect>,
    pub(super) verifying: Option<Arc<Connect>>,
    pub(super) assuming: Option<Arc<Connect>>,
    pub(super) in_process: bool,
    pub(super) mortal: Option<Mortal>,
}

/// A broker that may be killed.
#[derive(Clone)]
pub(super) struct Mortal {
    pub(super) connect: Arc<Connect>,
    pub(super) restart: Arc<Restart>,
    /// Held by the case that kills it.
    pub(super) alone: Arc<Mutex<()>>,
}

pub(super) type Connect = dyn Fn() -> Connecting + Send + Sync;
pub(super) type Connecting =
    Pin<Box<dyn Future<Output = Result<Arc<dyn Broker>, BoxError>> + Send>>;
pub(super) type Restart =
    dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync;

impl Target {
    /// Names a broker as its results show it (`rabbitmq-4.3`), and how to open a connection to it.
    ///
    /// A case opens several connections, from runtimes of its own. All must see the same messages;
    /// closing one must disturb no other.
    pub fn new<F, E>(
        name: impl Into<Cow<'static, str>>,
        connect: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Arc<dyn Broker>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self {
            name: name.into(),
            connect: boxed(connect),
            verifying: None,
            assuming: None,
            in_process: false,
            mortal: None,
        }
    }

    /// Says how to open a connection with `declare=verify`. Without it, the cases about missing
    /// destinations are ignored.
    pub fn verifying<F, E>(mut self, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Arc<dyn Broker>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.verifying = Some(boxed(connect));
        self
    }

    /// Says how to open a connection with `declare=off`. Without it, the cases about what is assumed
    /// to exist are ignored.
    pub fn assuming<F, E>(mut self, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Arc<dyn Broker>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.assuming = Some(boxed(connect));
        self
    }

    /// States that no other process can reach the broker, so that the cases which kill processes
    /// are ignored.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// Says how to open a connection to a broker that may be killed, and how to kill its process
    /// (`kill -9`) and start it again on the same data and address, until it answers. It may be a
    /// server of its own. Without it, the cases about a killed broker are ignored.
    pub fn killed<C, R, E>(
        mut self,
        connect: impl Fn() -> C + Send + Sync + 'static,
        restart: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self
    where
        C: Future<Output = Result<Arc<dyn Broker>, E>> + Send + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.mortal = Some(Mortal {
            connect: boxed(connect),
            restart: Arc::new(move || {
                let restarted = restart();
                Box::pin(async move { restarted.await.map_err(Into::into) })
            }),
            alone: Arc::default(),
        });
        self
    }
}

fn boxed<F, E>(connect: impl Fn() -> F + Send + Sync + 'static) -> Arc<Connect>
where
    F: Future<Output = Result<Arc<dyn Broker>, E>> + Send + 'static,
    E: Into<BoxError>,
{
    Arc::new(move || {
        let connected = connect();
        Box::pin(async move { connected.await.map_err(Into::into) })
    })
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}
