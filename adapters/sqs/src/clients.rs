use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybroker_core::adapter::{Background, ServerClock};
use anybroker_core::{ErrorKind, Result};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_sqs::config::StalledStreamProtectionConfig;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use crate::clock::Clock;
use crate::error::error_of;
use crate::options::{Settings, Sns};

/// How long a call may take that waits for nothing.
pub(crate) const CALL: Duration = Duration::from_secs(10);

/// The SDK's clients. All share the connections and the credentials; what differs is how long an
/// attempt may take and who repeats it.
pub(crate) struct Clients {
    /// For what can be repeated without harm, which the SDK does.
    pub(crate) calls: aws_sdk_sqs::Client,
    /// For what stores a message: only the sender knows whether it may be repeated.
    pub(crate) sends: aws_sdk_sqs::Client,
    /// For long polls. Without a limit, receives were seen to hang:
    /// <https://github.com/awslabs/aws-sdk-rust/issues/1094>
    pub(crate) polls: aws_sdk_sqs::Client,
    pub(crate) sns: Option<SnsClients>,
    /// What the clock of SQS shows, as far as its answers have told.
    pub(crate) clock: Arc<ServerClock>,
}

pub(crate) struct SnsClients {
    pub(crate) calls: aws_sdk_sns::Client,
    pub(crate) sends: aws_sdk_sns::Client,
}

/// Without what they know of the credentials.
impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// Serves connections in the background: whoever opened one, renewals may be the next to use it.
#[derive(Debug)]
struct InBackground<T>(T);

impl HttpClient for InBackground<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(InBackground(self.0.http_connector(settings, components)))
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

impl HttpConnector for InBackground<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = self.0.clone();
        HttpConnectorFuture::new(Background::scope(async move { connector.call(request).await }))
    }
}

impl Clients {
    pub(crate) async fn new(settings: &Settings) -> Result<Self> {
        // Closed before the server does it, which would leave a send open whether it was stored.
        let http = Builder::new()
            .pool_idle_timeout(Duration::from_secs(10))
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let http = SharedHttpClient::new(InBackground(http));
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some((key, secret)) = &settings.credentials {
            loader = loader.credentials_provider(Credentials::new(key, secret, None, None, "url"));
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            return Err(error_of(
                ErrorKind::Config,
                "connect",
                "no region: write one, as in sqs://eu-central-1, or set AWS_REGION",
            ));
        }
        let clock = Arc::new(ServerClock::default());
        Ok(Self {
            calls: sqs(&shared, settings, CALL, true, &clock),
            sends: sqs(&shared, settings, settings.options.publish_timeout, false, &clock),
            polls: sqs(&shared, settings, settings.poll + CALL, false, &clock),
            clock,
            sns: (settings.sns != Sns::Off).then(|| SnsClients {
                calls: sns(&shared, settings, CALL, true),
                sends: sns(&shared, settings, settings.options.publish_timeout, false),
            }),
        })
    }
}

fn sqs(
    shared: &SdkConfig,
    of: &Settings,
    limit: Duration,
    repeat: bool,
    clock: &Arc<ServerClock>,
) -> aws_sdk_sqs::Client {
    let mut config = aws_sdk_sqs::config::Builder::from(shared)
        .interceptor(Clock(Arc::clone(clock)))
        .timeout_config(attempts_of(limit))
        .retry_config(repeated(repeat));
    config.set_endpoint_url(of.endpoint.clone().or_else(|| shared.endpoint_url().map(Into::into)));
    aws_sdk_sqs::Client::from_conf(config.build())
}

fn sns(shared: &SdkConfig, of: &Settings, limit: Duration, repeat: bool) -> aws_sdk_sns::Client {
    let mut config = aws_sdk_sns::config::Builder::from(shared)
        .timeout_config(attempts_of(limit))
        .retry_config(repeated(repeat));
    let endpoint = match &of.sns {
        Sns::At(address) => Some(address.clone()),
        _ => of.endpoint.clone(),
    };
    if endpoint.is_some() {
        config.set_endpoint_url(endpoint);
    }
    aws_sdk_sns::Client::from_conf(config.build())
}

fn attempts_of(limit: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(limit)
        .build()
}

/// Three attempts, up to 1 and 2 s apart, after throttling and 5xx too; where the SDK gives up, the
/// caller goes on with a backoff of its own.
fn repeated(repeat: bool) -> RetryConfig {
    if repeat { RetryConfig::standard().with_max_attempts(3) } else { RetryConfig::disabled() }
}
