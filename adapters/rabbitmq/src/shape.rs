//! Publisher and consumer must mean the same shape of a destination: with other partitions, one
//! would publish to queues that the other never reads.

use anybroker_core::{Declare, Destination, Error, ErrorKind, Result};
use futures_util::TryFutureExt;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::error::failed;
use crate::link::while_open;
use crate::options::Binding;
use crate::topology::{Topology, short};

impl Topology {
    /// Checks that a destination, whose stored name this is, has no other shape, and stores its own.
    /// Returns whether its shape was stored before.
    ///
    /// The shape stands beside the destination, in an exchange that nobody publishes to: as the
    /// name of its alternate exchange, the one argument that RabbitMQ compares when an exchange is
    /// declared again. What an earlier version has made has no such exchange yet; there the queues'
    /// names tell.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) async fn agree(&self, destination: &Destination, stored: &str) -> Result<bool> {
        if destination.is_native() {
            return Ok(false);
        }
        let name = shape_of(stored);
        let is_stored = self.is_exchange(&name).await?;
        if !is_stored {
            self.agree_with_queues(destination, stored).await?;
        }
        let only_looks = self.settings.options.declare == Declare::Verify;
        if only_looks && !is_stored {
            return Ok(false);
        }
        let (exchange, what) = (short(&name)?, format!("the shape of {stored:?}"));
        let options = ExchangeDeclareOptions {
            durable: true,
            internal: true,
            ..ExchangeDeclareOptions::default()
        };
        let mut table = FieldTable::default();
        // It begins with the name, since a user may have the right to write to such names only.
        let shape = format!("{stored}: {}", destination.shape());
        table.insert("alternate-exchange".into(), AMQPValue::LongString(shape.into()));
        let kind = self.exchange_kind(destination);
        let declare = async move |channel: Channel| {
            let declared = channel.exchange_declare(exchange, kind, options, table);
            declared.await.map_err(|error| failed("declare", &what, error))
        };
        match self.questions.ask(&self.link, "declare", declare).await {
            // To compare takes the right to declare.
            Err(error) if only_looks && error.kind() == ErrorKind::Denied => Ok(true),
            result => result.map(|()| is_stored),
        }
    }

    /// Lets the groups of a topic whose exchange was deleted have its messages again: all of them
    /// are bound to the exchange of its shape too, which is bound to the new one. Their consumers,
    /// which also bind them to the new one directly, may be elsewhere, or not run.
    pub(crate) async fn bind_groups_again(&self, topic: &Destination, name: &str) -> Result<()> {
        let key = |binding: &Binding| binding.routing_key.clone();
        let keys = match self.exchange_kind(topic) {
            // Nothing matches all there.
            ExchangeKind::Direct => {
                let bindings = self.settings.bindings.iter();
                let of_topic = bindings.filter(|((other, _), _)| other == topic.name());
                of_topic.flat_map(|(_, bindings)| bindings.iter().map(key)).collect()
            }
            _ => vec!["#".to_owned()],
        };
        let channel = self.link.channel("declare").await?;
        for key in keys {
            let (to, from) = (short(&shape_of(name))?, short(name)?);
            let options = ExchangeBindOptions::default();
            let bound =
                channel.exchange_bind(to, from, short(&key)?, options, FieldTable::default());
            let what = format!("binding of the groups to {name:?}");
            let bound = bound.map_err(|error| failed("declare", &what, error));
            while_open("declare", &channel, bound).await?;
        }
        Ok(())
    }

    async fn agree_with_queues(&self, destination: &Destination, stored: &str) -> Result<()> {
        if destination.is_topic() {
            return Ok(());
        }
        let count = destination.partition_count();
        let partition = |index: u16| format!("{stored}--p{index}");
        let others = match count {
            1 => vec![partition(0)],
            _ => vec![stored.to_owned(), partition(count)],
        };
        for other in others {
            if self.count(&other).await?.is_some() {
                return Err(found(stored, destination, &other));
            }
        }
        // They are declared in the order of their numbers.
        let (first, last) = (partition(0), partition(count - 1));
        let is_there = async |name: &str| Ok::<_, Error>(self.count(name).await?.is_some());
        if count > 1 && is_there(&first).await? && !is_there(&last).await? {
            return Err(found(stored, destination, &first));
        }
        Ok(())
    }
}

/// The exchange that keeps the shape of what is stored by this name.
pub(crate) fn shape_of(stored: &str) -> String {
    format!("{stored}--shape")
}

fn found(stored: &str, asked: &Destination, queue: &str) -> Error {
    let found = format!("one that has a queue {queue:?}");
    Error::mismatch(&format!("queue {stored:?}"), &found, &asked.shape())
        .broker(crate::error::BROKER)
}
