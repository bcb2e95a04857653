//! What SNS wraps a message into, for a queue that is subscribed without raw delivery.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

/// <https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html>
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Notification<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) message_id: Cow<'a, str>,
    #[serde(borrow, rename = "TopicArn")]
    _topic: Cow<'a, str>,
    /// What was published.
    #[serde(borrow)]
    pub(crate) message: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) message_attributes: HashMap<Cow<'a, str>, Attribute<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Attribute<'a> {
    /// In base64 where it is of the type `Binary`.
    #[serde(borrow)]
    pub(crate) value: Cow<'a, str>,
}

impl<'a> Notification<'a> {
    /// Reads a body, if it is one.
    pub(crate) fn read(body: &'a str) -> Option<Self> {
        serde_json::from_str::<Self>(body).ok().filter(|wrapped| wrapped.r#type == "Notification")
    }
}
