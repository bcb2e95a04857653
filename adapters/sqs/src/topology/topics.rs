//! What of a topology is in SNS.

use std::sync::Arc;

use anybroker_core::{Declare, Destination, ErrorKind, Result};
use serde_json::json;

use super::{DECLARE, Feed, Topology, mismatch, missing, shared};
use crate::clients::SnsClients;
use crate::error::{error_of, failed};
use crate::names::{self, FIFO};

impl Topology {
    pub(super) fn sns(&self) -> Result<&SnsClients> {
        self.clients.sns.as_ref().ok_or_else(|| {
            let text = "topics need SNS, and this connection says sns=off: use a queue";
            error_of(ErrorKind::Unsupported, DECLARE, text)
        })
    }

    /// The ARN of a topic, created or checked at first use.
    pub(crate) async fn topic(self: &Arc<Self>, destination: &Destination) -> Result<Arc<str>> {
        let name = names::of_topic(self.prefix(), destination)?;
        let known = self.known().topics.get(&name).cloned();
        match known {
            Some(arn) => Ok(arn),
            None => self.make_topic(destination).await,
        }
    }

    /// Creates or checks a topic, whatever was there before.
    pub(super) async fn make_topic(self: &Arc<Self>, topic: &Destination) -> Result<Arc<str>> {
        let name = names::of_topic(self.prefix(), topic)?;
        let (this, declaration) = (Arc::clone(self), shared(&self.topics, &name));
        declaration.run(|| async move { this.make_topic_of(name).await }).await
    }

    async fn make_topic_of(&self, name: String) -> Result<Arc<str>> {
        let _turn = self.turns.acquire().await;
        let sns = self.sns()?;
        let arns = match self.arns.get() {
            Some(arns) => Some(arns),
            // Where there is no topic yet, there may be one next time.
            None => first_topics(sns).await?.map(|arns| self.arns.get_or_init(|| arns)),
        };
        let existing = match arns {
            Some(arns) => {
                let arn = format!("{arns}{name}");
                let off = self.settings.options.declare == Declare::Off;
                (off || topic_exists(sns, &arn).await?).then_some(arn)
            }
            None => None,
        };
        let arn = match existing {
            Some(arn) => arn.into(),
            None => {
                let other = names::other_shape(&name);
                if let Some(arns) = arns
                    && topic_exists(sns, &format!("{arns}{other}")).await?
                {
                    return Err(mismatch("topic", &name, &other));
                }
                if self.settings.options.declare != Declare::Create {
                    return Err(missing("topic", &name));
                }
                let arn = create_topic(sns, &name).await?.into();
                self.created(&arn);
                arn
            }
        };
        self.known().topics.insert(name, Arc::clone(&arn));
        Ok(arn)
    }

    /// Nothing happens to a subscription that is there already.
    pub(super) async fn subscribe(&self, feed: &Feed) -> Result<()> {
        let Feed { topic, queue, dead_letters } = feed;
        let what = format!("subscription of {queue:?} to {topic:?}");
        self.sns()?
            .calls
            .subscribe()
            .topic_arn(&**topic)
            .protocol("sqs")
            .endpoint(queue)
            .return_subscription_arn(true)
            .attributes("RawMessageDelivery", "true")
            .attributes("RedrivePolicy", json!({ "deadLetterTargetArn": dead_letters }).to_string())
            .send()
            .await
            .map_err(|error| failed(DECLARE, &what, error))?;
        Ok(())
    }

    pub(super) async fn verify_subscribed(&self, feed: &Feed) -> Result<()> {
        let Feed { topic, queue, .. } = feed;
        let list = self.sns()?.calls.list_subscriptions_by_topic().topic_arn(&**topic);
        let mut subscriptions = list.into_paginator().items().send();
        while let Some(found) = subscriptions.next().await {
            let found = found.map_err(|error| failed(DECLARE, topic, error))?;
            if found.endpoint() == Some(queue) {
                return Ok(());
            }
        }
        Err(missing("subscription", &format!("{topic} -> {queue}")))
    }
}

/// An account's topics differ in their names alone, so that one tells the others' ARNs.
async fn first_topics(sns: &SnsClients) -> Result<Option<String>> {
    let listed = sns.calls.list_topics().send().await;
    let listed = listed.map_err(|error| failed(DECLARE, "list of topics", error))?;
    let arn = listed.topics().first().and_then(|topic| topic.topic_arn());
    Ok(arn.and_then(|arn| arn.rsplit_once(':')).map(|(start, _)| format!("{start}:")))
}

async fn topic_exists(sns: &SnsClients, arn: &str) -> Result<bool> {
    match sns.calls.get_topic_attributes().topic_arn(arn).send().await {
        Ok(_) => Ok(true),
        Err(error) => match failed(DECLARE, &format!("topic {arn:?}"), error) {
            error if error.kind() == ErrorKind::NotFound => Ok(false),
            error => Err(error),
        },
    }
}

async fn create_topic(sns: &SnsClients, name: &str) -> Result<String> {
    let mut create = sns.calls.create_topic().name(name);
    if name.ends_with(FIFO) {
        create = create.attributes("FifoTopic", "true");
    }
    let what = format!("topic {name:?}");
    let created = create.send().await.map_err(|error| failed(DECLARE, &what, error))?;
    created.topic_arn.ok_or_else(|| error_of(ErrorKind::Broker, DECLARE, "no ARN came back"))
}
