use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anybroker_core::adapter::ServerClock;
use anybroker_core::now;
use aws_sdk_sqs::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
use aws_smithy_types::config_bag::{Storable, StoreReplace};

/// Learns the time of SQS from the header `Date` of its answers.
#[derive(Debug)]
pub(crate) struct Clock(pub(crate) Arc<ServerClock>);

/// The header has whole seconds, and a server may write it anew only once a second.
const UNIT: Duration = Duration::from_secs(2);

/// When a request was sent.
#[derive(Debug)]
struct Asked(SystemTime);

impl Storable for Asked {
    type Storer = StoreReplace<Self>;
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "anybroker clock"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(Asked(now()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Without the header, or with another text in it, the times of messages stay as they are.
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        let server = date.and_then(|date| SystemTime::try_from(date).ok());
        if let Some((server, Asked(asked))) = server.zip(config.load::<Asked>()) {
            self.0.note(*asked, server, UNIT);
        }
        Ok(())
    }
}
