use std::borrow::Cow;
use std::error::Error as StdError;
use std::time::Duration;

/// What becomes of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Handled: the group does not see it again.
    Ack,
    /// Failed: the group sees it again no earlier than `after`, with the next attempt number.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// Given up: it goes to the group's dead-letter queue.
    DeadLetter {
        /// Why.
        reason: Reason,
    },
    /// Given back untouched: the group sees it again no earlier than `after`, with no attempt used.
    Release {
        /// How long to wait; zero gives it back at once.
        after: Duration,
    },
}

impl Outcome {
    /// Dead-letters with a code of the application's own and a text.
    pub fn dead_letter(code: impl Into<Cow<'static, str>>, error: impl Into<String>) -> Self {
        Self::DeadLetter { reason: Reason::new(code, error) }
    }
}

/// Why a message is given up: a short code to filter by, and the error with its causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Box<(Cow<'static, str>, String)>);

/// Error chains are cut to this, so that a dead letter's headers fit every broker.
const LONGEST_ERROR: usize = 4096;

impl Reason {
    /// Attempts or budget used up.
    pub const EXHAUSTED: &'static str = "exhausted";
    /// An error that trying again cannot mend.
    pub const PERMANENT: &'static str = "permanent";
    /// The payload does not decode into the handler's message.
    pub const UNDECODABLE: &'static str = "undecodable";
    /// No route takes the message's type.
    pub const UNKNOWN_TYPE: &'static str = "unknown-type";
    /// The envelope's `expires` is in the past.
    pub const EXPIRED: &'static str = "expired";
    /// Delivered more often than `max_deliveries`.
    pub const MAX_DELIVERIES: &'static str = "max-deliveries";
    /// Its time lies further ahead than [`max_delay`](crate::Subscription::max_delay).
    pub const TOO_FAR_AHEAD: &'static str = "too-far-ahead";
    /// Larger than a message may be, and so not decoded.
    pub const TOO_LARGE: &'static str = "too-large";
    /// The idempotency key was seen with other content.
    pub const MISMATCH: &'static str = "idempotency-mismatch";

    /// Makes a reason; the code is cut to 64 bytes, the error to 4 KiB.
    pub fn new(code: impl Into<Cow<'static, str>>, error: impl Into<String>) -> Self {
        let (mut code, mut error) = (code.into(), error.into());
        if code.len() > 64 {
            let end = code.floor_char_boundary(64);
            code.to_mut().truncate(end);
        }
        error.truncate(error.floor_char_boundary(LONGEST_ERROR));
        Self(Box::new((code, error)))
    }

    /// Makes a reason from an error and its causes, joined by `: `.
    pub fn from_error(
        code: impl Into<Cow<'static, str>>,
        error: &(dyn StdError + 'static),
    ) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            if text.len() > LONGEST_ERROR {
                break;
            }
            // Many errors end in the text of their cause, and a marked one is its own cause.
            let link = error.to_string();
            if !text.ends_with(&link) {
                text.push_str(": ");
                text.push_str(&link);
            }
            cause = error.source();
        }
        Self::new(code, text)
    }

    /// The short code.
    pub fn code(&self) -> &str {
        &self.0.0
    }

    /// The error and its causes.
    pub fn error(&self) -> &str {
        &self.0.1
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// Errors that cause each other.
    #[derive(Debug)]
    struct Chain {
        text: String,
        cause: Option<Box<Chain>>,
    }

    impl Chain {
        fn new(texts: &[&str]) -> Option<Box<Self>> {
            let (text, causes) = texts.split_first()?;
            Some(Box::new(Self { text: (*text).to_owned(), cause: Self::new(causes) }))
        }
    }

    impl fmt::Display for Chain {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.text)
        }
    }

    impl StdError for Chain {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.cause.as_deref().map(|cause| cause as _)
        }
    }

    fn error_text(texts: &[&str]) -> String {
        let chain = Chain::new(texts).expect("there is a text");
        Reason::from_error(Reason::EXHAUSTED, &*chain).error().to_owned()
    }

    #[test]
    fn a_reason_names_all_causes_once() {
        assert_eq!(error_text(&["a", "b", "c"]), "a: b: c");
        assert_eq!(error_text(&["a: b", "b", "c"]), "a: b: c");
        assert_eq!(error_text(&["a", "a", "b"]), "a: b");
    }

    #[test]
    fn a_long_error_is_cut_at_the_end_of_a_character() {
        for (text, length) in
            [("ß".repeat(3000), 4096), (format!("a{}", "ß".repeat(3000)), 4095), ("a".repeat(9), 9)]
        {
            let reason = Reason::new(Reason::EXHAUSTED, text.clone());
            assert_eq!(reason.error().len(), length);
            assert!(text.starts_with(reason.error()));
        }
        let emoji = "🦀".repeat(2000);
        let text = error_text(&["a", &emoji, "never reached"]);
        assert_eq!(text.len(), 3 + 4092);
        assert!(text.starts_with("a: 🦀"));
    }

    #[test]
    fn a_long_code_is_cut_at_the_end_of_a_character() {
        assert_eq!(Reason::new("ß".repeat(40), "").code().len(), 64);
        assert_eq!(Reason::new(format!("a{}", "ß".repeat(40)), "").code().len(), 63);
        assert_eq!(Reason::new(Reason::MISMATCH, "").code(), "idempotency-mismatch");
    }
}
