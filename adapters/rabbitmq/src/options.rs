use std::collections::HashMap;
use std::sync::Arc;

use anybroker_core::adapter::{Options, Server, option_methods, server_methods};
use anybroker_core::{BrokerUrl, ErrorKind, Result};
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::RabbitmqBroker;
use crate::error::error_of;

/// Sets up a connection; [`connect`](Self::connect) opens it.
///
/// Each method but [`exchange`](Self::exchange) and [`bind`](Self::bind) is an option of the URL
/// too: `amqps://user:password@host/vhost?prefix=dev`.
///
/// # Defaults
/// `amqp://guest:guest@localhost:5672/%2F`, no prefix, `declare=create`, one attempt to connect,
/// 30 s for a publish, payloads up to 16 MiB, the system's certificate authorities.
#[derive(Clone, Debug)]
#[must_use = "nothing is connected until connect is called"]
pub struct RabbitmqBuilder(pub(crate) Settings);

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) server: Server,
    pub(crate) options: Options,
    pub(crate) vhost: String,
    pub(crate) exchanges: HashMap<String, ExchangeKind>,
    pub(crate) bindings: HashMap<(String, String), Vec<Binding>>,
}

/// Which messages of an exchange a group gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub(crate) routing_key: String,
    pub(crate) arguments: FieldTable,
}

impl Binding {
    /// Those whose type matches: exactly on a direct exchange, as a pattern (`order.*`, `#`) on a
    /// topic exchange.
    pub fn key(routing_key: impl Into<String>) -> Self {
        Self { routing_key: routing_key.into(), arguments: FieldTable::default() }
    }

    /// Those that have all of these headers, on a headers exchange. An attribute of the envelope
    /// is the header `ce-name`.
    pub fn all_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::headers("all", headers)
    }

    /// Those that have any of these headers, on a headers exchange.
    pub fn any_header<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::headers("any", headers)
    }

    fn headers<'a>(mode: &'a str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut arguments = FieldTable::default();
        for (name, value) in [("x-match", mode)].into_iter().chain(headers) {
            // A name that AMQP cannot carry matches nothing.
            if let Ok(name) = ShortString::try_new(name) {
                arguments.insert(name, AMQPValue::LongString(value.into()));
            }
        }
        Self { routing_key: String::new(), arguments }
    }
}

impl Default for RabbitmqBuilder {
    fn default() -> Self {
        Self(Settings {
            server: Server::local(5672, 16 * 1024 * 1024),
            options: Options::default(),
            vhost: "/".to_owned(),
            exchanges: HashMap::new(),
            bindings: HashMap::new(),
        })
    }
}

impl RabbitmqBuilder {
    /// Takes address, credentials and options from a URL.
    ///
    /// # Errors
    /// `Config` for an unknown option or a value that does not parse.
    pub fn url(mut self, mut url: BrokerUrl) -> Result<Self> {
        let settings = &mut self.0;
        settings.server.read(&mut url, &[("amqp", 5672)], &[("amqps", 5671)])?;
        settings.options.read(&mut url)?;
        if !url.path().is_empty() {
            url.path().clone_into(&mut settings.vhost);
        }
        url.finish()?;
        Ok(self)
    }

    option_methods!("a dot", "a virtual host");
    server_methods!(
        "Sets the broker's `max_message_size` in bytes; 16 MiB unless set, as on RabbitMQ 4 (older ones take 128 MiB).",
        "too"
    );

    /// Makes a topic an exchange of another kind; a topic exchange unless set. The routing key is
    /// the envelope's type on each.
    pub fn exchange(mut self, topic: impl Into<String>, kind: ExchangeKind) -> Self {
        self.0.exchanges.insert(topic.into(), kind);
        self
    }

    /// Lets a group of a topic have only what a binding matches, or one of several. Without, it
    /// gets all; a direct exchange needs one. Bindings that exist already stay.
    pub fn bind(
        mut self,
        topic: impl Into<String>,
        group: impl Into<String>,
        binding: Binding,
    ) -> Self {
        self.0.bindings.entry((topic.into(), group.into())).or_default().push(binding);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `Config`, `Unavailable`, `Denied` or `NotFound`, with what to write instead.
    pub async fn connect(self) -> Result<Arc<RabbitmqBroker>> {
        self.0.options.validate()?;
        if self.0.vhost.len() > 255 {
            let text = "the virtual host has more than 255 bytes, which no broker has";
            return Err(error_of(ErrorKind::Config, "connect", text));
        }
        RabbitmqBroker::open(self.0).await
    }
}
