//! How names and keys look on SQS and SNS.

use std::fmt::Write;

use anybroker_core::adapter::prefixed;
use anybroker_core::{Destination, Envelope, ErrorKind, Hop, Result, Subscription};
use sha2::{Digest, Sha256};

use crate::error::error_of;

/// What a FIFO queue or topic is called at the end; its shape decides it.
pub(crate) const FIFO: &str = ".fifo";

/// The most that SQS takes.
const LONGEST: usize = 80;

/// Begins the group of a message without key, which is in nobody's order.
const KEYLESS: &str = "keyless-";

/// What is stored for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) queue: String,
    pub(crate) dead_letters: String,
}

/// The queues of a subscription.
pub(crate) fn of_subscription(prefix: Option<&str>, subscription: &Subscription) -> Result<Names> {
    subscription.validate()?;
    let destination = subscription.destination();
    if subscription.is_ordered() != destination.is_ordered() {
        return Err(error_of(
            ErrorKind::Unsupported,
            "subscribe",
            format!(
                "SNS keeps no order for one group alone: write Topic::new({:?}).ordered(), on all sides",
                destination.name()
            ),
        ));
    }
    let mut base = base(prefix, destination, &subscription.stored_name())?;
    if destination.is_native() && destination.is_topic() {
        base = format!("{base}--{}", mapped(subscription.group_name()));
    }
    let end = if destination.is_ordered() { FIFO } else { "" };
    let names = Names { queue: format!("{base}{end}"), dead_letters: format!("{base}--dlq{end}") };
    if names.dead_letters.len() > LONGEST {
        let text = format!(
            "the queue {:?} would have more than {LONGEST} characters; shorten the prefix or the name",
            names.dead_letters
        );
        return Err(error_of(ErrorKind::Invalid, "subscribe", text));
    }
    Ok(names)
}

/// The topic of a destination.
pub(crate) fn of_topic(prefix: Option<&str>, destination: &Destination) -> Result<String> {
    destination.validate()?;
    let end = if destination.is_ordered() { FIFO } else { "" };
    Ok(format!("{}{end}", base(prefix, destination, destination.name())?))
}

/// The same name in the other shape.
pub(crate) fn other_shape(name: &str) -> String {
    name.strip_suffix(FIFO).map_or_else(|| format!("{name}{FIFO}"), ToOwned::to_owned)
}

/// What the names derive from: `stored` with the prefix, but a native name without its ending.
fn base(prefix: Option<&str>, destination: &Destination, stored: &str) -> Result<String> {
    if !destination.is_native() {
        return Ok(mapped(&prefixed(prefix, "--", destination, stored)?));
    }
    let name = destination.name();
    let base = match (name.strip_suffix(FIFO), destination.is_ordered()) {
        (Some(base), true) => base,
        (None, false) => name,
        (Some(_), false) => return Err(invalid(format!("{name:?} is FIFO: write .ordered() too"))),
        (None, true) => return Err(invalid(format!("{name:?} is not FIFO: leave .ordered() out"))),
    };
    if base.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        Ok(base.to_owned())
    } else {
        Err(invalid(format!("{name:?} may contain only letters, digits, `-` and `_`")))
    }
}

/// SQS knows no `.` but the one of `.fifo`.
fn mapped(name: &str) -> String {
    name.replace('.', "_")
}

fn invalid(text: String) -> anybroker_core::Error {
    error_of(ErrorKind::Invalid, "name", text)
}

/// The message group of an envelope: its key, as far as SQS takes it, and else its hash; one of its
/// own where it has none.
pub(crate) fn message_group(envelope: &Envelope) -> String {
    match &envelope.key {
        Some(key) if key.len() <= 128 && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            key.clone()
        }
        Some(key) => hash([key.as_bytes()]),
        None => format!("{KEYLESS}{}", hash([envelope.source.as_bytes(), envelope.id.as_bytes()])),
    }
}

/// The key that somebody else's message has by its group.
pub(crate) fn key_of_group(group: &str) -> Option<&str> {
    (!group.starts_with(KEYLESS)).then_some(group)
}

/// Differs for each stored copy. The envelope's id alone would not do: within five minutes after
/// a message SQS answers 200 to a retry, a dead letter or a redrive with the same id, and stores
/// nothing.
pub(crate) fn deduplication_id(envelope: &Envelope, hop: &Hop) -> String {
    let hop = hop.id.as_deref().unwrap_or_default();
    hash([envelope.source.as_bytes(), envelope.id.as_bytes(), hop.as_bytes()])
}

/// In hexadecimal; the lengths keep ("a", "bc") and ("ab", "c") apart.
fn hash<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Text into memory: there is no error to handle.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use anybroker_core::{Queue, Topic};

    use super::*;

    fn names(prefix: Option<&str>, subscription: &Subscription) -> [String; 2] {
        let names = of_subscription(prefix, subscription).expect("it is valid");
        [names.queue, names.dead_letters]
    }

    #[test]
    fn dots_become_underscores_and_parts_are_joined() {
        let queue = Subscription::queue("order.place");
        assert_eq!(names(None, &queue), ["order_place", "order_place--dlq"]);
        let group = Subscription::topic("order.created").group("e.mail");
        let expected = ["eu_dev--order_created--e_mail", "eu_dev--order_created--e_mail--dlq"];
        assert_eq!(names(Some("eu.dev"), &group), expected);
        let ordered = Subscription::queue(Queue::new("payments").ordered());
        assert_eq!(names(None, &ordered), ["payments.fifo", "payments--dlq.fifo"]);
        let topic = Topic::new("order.created").ordered().into();
        assert_eq!(of_topic(Some("dev"), &topic).expect("valid"), "dev--order_created.fifo");
        assert_eq!(other_shape("a.fifo"), "a");
        assert_eq!(other_shape("a"), "a.fifo");
    }

    #[test]
    fn a_native_name_is_used_as_it_is_and_must_fit_its_shape() {
        let native = Subscription::queue(Queue::native("Old_Queue"));
        assert_eq!(names(Some("dev"), &native), ["Old_Queue", "Old_Queue--dlq"]);
        let fifo = Queue::native("Old.fifo");
        let ordered = Subscription::queue(fifo.clone().ordered());
        assert_eq!(names(None, &ordered), ["Old.fifo", "Old--dlq.fifo"]);
        for queue in [fifo, Queue::native("Old").ordered(), Queue::native("o.ld")] {
            let error = of_subscription(None, &Subscription::queue(queue)).expect_err("its shape");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn an_order_that_sns_does_not_keep_is_refused() {
        let group = Subscription::topic("t").group("g").ordered();
        let error = of_subscription(None, &group).expect_err("the topic is not ordered");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_longest_portable_names_fit_and_a_prefix_counts() {
        let longest =
            Subscription::topic(Topic::new("t".repeat(40)).ordered()).group("g".repeat(24));
        assert_eq!(names(None, &longest)[1].len(), 76);
        let error = of_subscription(Some("production"), &longest).expect_err("it is too long");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn keys_that_sqs_does_not_take_are_hashed() {
        let group = |key: &str| message_group(&Envelope::new("t", "").with_key(key));
        assert_eq!(group("customer-7/a"), "customer-7/a");
        for key in ["two words", "größe", &"k".repeat(129)] {
            assert_eq!(group(key).len(), 64);
            assert_eq!(group(key), group(key));
        }
        let keyless = message_group(&Envelope::new("t", ""));
        assert_ne!(keyless, message_group(&Envelope::new("t", "")));
        assert_eq!((keyless.len(), key_of_group(&keyless)), (72, None));
        assert_eq!(key_of_group("customer-7"), Some("customer-7"));
    }

    #[test]
    fn each_copy_has_its_own_deduplication_id() {
        let envelope = Envelope::new("t", "").with_id("1").with_source("s");
        let published = deduplication_id(&envelope, &Hop::default());
        assert_eq!(published, deduplication_id(&envelope.clone(), &Hop::default()));
        assert_ne!(published, deduplication_id(&envelope, &Hop::redrive()));
        assert_ne!(
            published,
            deduplication_id(
                &Envelope::new("t", "").with_id("").with_source("s1"),
                &Hop::default()
            )
        );
    }
}
