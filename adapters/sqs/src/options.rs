use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::adapter::{Options, option_methods};
use anybroker_core::{BrokerUrl, Error, ErrorKind, Result};

use crate::SqsBroker;
use crate::error::error_of;

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method is an option of the URL too: `sqs://eu-central-1?prefix=dev`.
///
/// # Defaults
/// Region, credentials and endpoints by the SDK's own chain, no prefix, `declare=create`, one
/// attempt to connect, 30 s for a publish, long polls of 5 s.
#[derive(Clone)]
#[must_use = "nothing is connected until connect is called"]
pub struct SqsBuilder(pub(crate) Settings);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) sns: Sns,
    pub(crate) credentials: Option<(String, String)>,
    pub(crate) poll: Duration,
}

/// Where the topics are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Sns {
    BesideSqs,
    At(String),
    Off,
}

impl Default for SqsBuilder {
    fn default() -> Self {
        Self(Settings {
            options: Options::default(),
            region: None,
            endpoint: None,
            sns: Sns::BesideSqs,
            credentials: None,
            poll: Duration::from_secs(5),
        })
    }
}

impl SqsBuilder {
    /// Takes region or address, credentials and options from a URL.
    ///
    /// # Errors
    /// `Config` for an unknown option or a value that does not parse.
    pub fn url(mut self, mut url: BrokerUrl) -> Result<Self> {
        match url.scheme() {
            "sqs" => {
                let hosts = url.hosts(443).unwrap_or_default();
                self = match &*hosts {
                    [] => self,
                    [(region, 443)] => self.region(region.clone()),
                    _ => {
                        return Err(config(
                            "write one region, as in sqs://eu-central-1; a server of your own is sqs+http://host:port",
                        ));
                    }
                };
            }
            "sqs+http" => {
                let [(host, port)] = &*url.hosts(80)? else {
                    return Err(config("write one server, as in sqs+http://host:port"));
                };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                self = self
                    .endpoint(format!("http://{host}:{port}"))
                    .region("us-east-1")
                    .credentials("anybroker", "anybroker");
            }
            other => {
                return Err(config(format!(
                    "scheme {other:?} is not SQS's: write sqs:// or sqs+http://"
                )));
            }
        }
        if !url.path().is_empty() {
            return Err(config("the URL has a path: write only region or server, and options"));
        }
        if let Some(key) = url.user() {
            let secret = url.password().unwrap_or_default().to_owned();
            self = self.credentials(key.to_owned(), secret);
        }
        let settings = &mut self.0;
        if let Some(region) = url.option("region", "a region such as eu-central-1")? {
            settings.region = Some(region);
        }
        match url.option::<String>("sns", "off, or an address such as http://host:port")? {
            None => {}
            Some(off) if off == "off" => settings.sns = Sns::Off,
            Some(address) if address.contains("://") => settings.sns = Sns::At(address),
            Some(other) => {
                return Err(config(format!(
                    "option sns={other} is not understood: write off, or an address such as http://host:port"
                )));
            }
        }
        settings.options.read(&mut url)?;
        if let Some(poll) = url.duration("poll")? {
            self = self.poll(poll);
        }
        url.finish()?;
        Ok(self)
    }

    /// Sets the region; the SDK's chain (`AWS_REGION`, the profile, the instance) unless set.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.0.region = Some(region.into());
        self
    }

    /// Sets another server than AWS, for SQS and SNS, as `http://host:port`.
    pub fn endpoint(mut self, address: impl Into<String>) -> Self {
        self.0.endpoint = Some(address.into());
        self
    }

    /// Sets another server for SNS alone. It must know the queues of the other one.
    pub fn sns_endpoint(mut self, address: impl Into<String>) -> Self {
        self.0.sns = Sns::At(address.into());
        self
    }

    /// Does without SNS: topics are `Unsupported`.
    pub fn without_sns(mut self) -> Self {
        self.0.sns = Sns::Off;
        self
    }

    /// Sets access key and secret; the SDK's chain (environment, profile, role) unless set.
    pub fn credentials(mut self, key: impl Into<String>, secret: impl Into<String>) -> Self {
        self.0.credentials = Some((key.into(), secret.into()));
        self
    }

    option_methods!("`--`", "an account");

    /// Sets how long a receive waits for messages, in whole seconds from 1 to 20; 5 s unless set.
    /// 20 s cost the fewest requests of an idle consumer; a close waits for the last receive. It is
    /// at most a third of a subscription's lease, but 1 s at least.
    pub fn poll(mut self, wait: Duration) -> Self {
        self.0.poll = Duration::from_secs(wait.as_secs().clamp(1, 20));
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `Config`, `Unavailable` or `Denied`, with what to write instead.
    pub async fn connect(self) -> Result<Arc<SqsBroker>> {
        self.0.options.validate()?;
        let is_region = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if let Some(region) = self.0.region.as_deref().filter(|region| !is_region(region)) {
            return Err(config(format!(
                "{region:?} is no region: write one such as eu-central-1; a server of your own is sqs+http://host:port"
            )));
        }
        SqsBroker::open(self.0).await
    }
}

impl fmt::Debug for SqsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Without the credentials.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn config(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    error_of(ErrorKind::Config, "connect", text)
}
