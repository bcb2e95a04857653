//! Which message the handler on this thread handles: what it publishes says what led to it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::Envelope;

thread_local! {
    static HANDLED: RefCell<Option<Arc<Envelope>>> = const { RefCell::new(None) };
}

/// What was handled before is handled again, also after a panic.
struct Before(Option<Arc<Envelope>>);

impl Drop for Before {
    fn drop(&mut self) {
        HANDLED.set(self.0.take());
    }
}

/// Runs one step of the handler of this message.
pub(crate) fn while_handling<R>(envelope: Option<&Arc<Envelope>>, step: impl FnOnce() -> R) -> R {
    let _before = Before(HANDLED.replace(envelope.cloned()));
    step()
}

/// Notes what led to a message, if a handler makes it: the message that is handled, and the
/// conversation of that one, which it begins if it has none.
pub(crate) fn attribute(envelope: &mut Envelope) {
    HANDLED.with_borrow(|handled| {
        let Some(handled) = handled else { return };
        envelope.causation_id = Some(handled.id.clone());
        let conversation = handled.correlation_id.as_ref().unwrap_or(&handled.id);
        envelope.correlation_id = Some(conversation.clone());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_led_to_it_and_nothing_where_nothing_is_handled() {
        let made = || {
            let mut envelope = Envelope::new("t", "");
            attribute(&mut envelope);
            (envelope.correlation_id, envelope.causation_id)
        };
        let ids = |conversation: &str, cause: &str| {
            (Some(conversation.to_owned()), Some(cause.to_owned()))
        };
        let first = Arc::new(Envelope::new("t", "").with_id("1"));
        let second = Arc::new(Envelope::new("t", "").with_id("2").with_correlation_id("1"));
        while_handling(Some(&first), || {
            assert_eq!(made(), ids("1", "1"));
            while_handling(Some(&second), || assert_eq!(made(), ids("1", "2")));
            let ended = std::panic::catch_unwind(|| while_handling(Some(&second), || panic!("x")));
            assert!(ended.is_err());
            assert_eq!(made(), ids("1", "1"));
        });
        assert_eq!(made(), (None, None));
    }
}
