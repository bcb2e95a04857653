//! How an envelope and its hop look on the wire: as a CloudEvents 1.0 event. The one mapping that
//! all adapters use; each adds the prefix of its transport (`ce_`, `ce-`) to the names.
//!
//! | attribute | field |
//! |---|---|
//! | `id`, `source`, `type`, `time` | the envelope's own |
//! | `schemaversion` | `version`; 1 is not written |
//! | `partitionkey` | `key` |
//! | `correlationid`, `causationid` | `correlation_id`, `causation_id` |
//! | `expirytime` | `expires` |
//! | any other | a header |
//! | `abhop`, `notbefore` | the hop's `id`, `not_before` |
//! | `abclock` | what the clock that the times are written by showed when the copy was stored |
//! | `abattempts`, `abunsettled` | the hop's `attempts`, `unsettled` |
//! | `abfirstfailure` | the hop's `first_failure` |
//! | `abreason`, `aberror`, `aborigin`, `abgroup`, `ablastfailure` | the hop's `failure` |
//!
//! What came with a message and is no attribute ends in the header `nativeheaders`, one JSON object:
//! text as a string, other bytes as `{"base64": "…"}`. A text of which every tenth character or so is
//! a control character is written in base64 too, where JSON would write six bytes for each of them.
//!
//! Times are RFC 3339 with up to nanoseconds, in the years 0000 to 9999; a time beyond them is
//! written as the first or last of them. Values are text as it is, control characters included:
//! what a transport cannot carry, its adapter escapes.
//!
//! # Clocks that differ
//! `notbefore` and `expirytime` are times of the clock of whoever stored the message, and
//! `abclock`, which comes with either of them, is what that clock showed then. An adapter that knows
//! when the broker stored the message says so ([`AttributeReader::stored_at`]), in terms of this
//! machine's clock ([`ServerClock`](crate::adapter::ServerClock)), and both times are moved by the
//! difference, up to a day: a clock that differs by more is not believed. So a delay and an expiry
//! count from the broker's time of storing, whatever the clocks of the two machines show.

mod attribute;
mod json;
mod native;
mod read;
mod write;

pub use json::{from_json, from_json_stored_at, is_structured, to_json, to_json_held};
pub use native::bytes_to_json;
pub use read::AttributeReader;
pub use write::{write_attributes, write_attributes_held};
