use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, RwLock};

use anybroker_core::{BoxError, Broker};

/// A broker to run the suite against: how it is reached, and what else a test may do to it.
#[derive(Clone)]
pub struct Target {
    pub(super) name: Cow<'static, str>,
    pub(super) connect: Arc<Connect>,
    pub(super) verifying: Option<Arc<Connect>>,
    pub(super) restart: Option<Arc<Restart>>,
    pub(super) in_process: bool,
    /// Held shared by each case, and alone by those that restart the broker.
    pub(super) undisturbed: Arc<RwLock<()>>,
}

pub(super) type Connect = dyn Fn() -> Connecting + Send + Sync;
pub(super) type Connecting =
    Pin<Box<dyn Future<Output = Result<Arc<dyn Broker>, BoxError>> + Send>>;
pub(super) type Restart =
    dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync;

impl Target {
    /// Names a broker as its results show it (`rabbitmq-4.3`), and how to open a connection to it.
    ///
    /// A case opens several connections: all must see the same messages, and each must be its own,
    /// so that closing one is as good as a crash.
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
            restart: None,
            in_process: false,
            undisturbed: Arc::default(),
        }
    }

    /// States that the messages live and die with their connection: each case then opens one, and
    /// a crash is a consumer that is dropped.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
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

    /// Says how to kill the broker's process (`kill -9`) and start it again on the same data and
    /// port; ends when it answers. Without it, the cases about a killed broker are ignored.
    pub fn restart<F, E>(mut self, restart: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.restart = Some(Arc::new(move || {
            let restarted = restart();
            Box::pin(async move { restarted.await.map_err(Into::into) })
        }));
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
