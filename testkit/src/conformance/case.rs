use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anybroker_core::{BoxError, Capabilities};

use super::lab::Lab;
use super::target::Target;

/// What a case answers: errors of the library by `?`; its assertions panic.
pub(super) type Checked<T = ()> = Result<T, BoxError>;

/// One contract, as a test.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) need: Need,
    pub(super) deadline: Duration,
    pub(super) run: fn(Lab) -> Pin<Box<dyn Future<Output = Checked> + Send>>,
}

/// What a case needs of the broker; otherwise it is ignored with the reason.
#[derive(Clone, Copy)]
pub(super) enum Need {
    Nothing,
    /// A server that no other case of the suite uses meanwhile.
    Alone,
    /// A capability.
    Of(fn(&Capabilities) -> bool, &'static str),
    /// A connection that only checks what it uses.
    Verifying,
    /// A connection that takes what it uses for declared.
    Assuming,
    /// A broker that other processes reach.
    Processes,
    /// The same, with topics.
    ProcessesOnTopics,
    /// A broker that may be killed.
    Restart,
}

impl Need {
    /// Topics.
    pub(super) const TOPICS: Self = Self::Of(|can| can.topics, "there are no topics");

    /// The reason to ignore the case.
    pub(super) fn missing(self, target: &Target, capabilities: &Capabilities) -> Option<String> {
        match self {
            Self::ProcessesOnTopics => Self::Processes
                .missing(target, capabilities)
                .or_else(|| Self::TOPICS.missing(target, capabilities)),
            Self::Of(can, reason) if !can(capabilities) => {
                Some(format!("{}: {reason}", capabilities.broker))
            }
            Self::Verifying if target.verifying.is_none() => {
                Some("the target offers no connection with declare=verify".to_owned())
            }
            Self::Assuming if target.assuming.is_none() => {
                Some("the target offers no connection with declare=off".to_owned())
            }
            Self::Processes if target.in_process => {
                Some("no other process can reach the broker".to_owned())
            }
            Self::Restart if target.mortal.is_none() => {
                Some("the target does not say how to kill its broker and start it again".to_owned())
            }
            _ => None,
        }
    }
}

/// Lists the cases of a file, `name` or `name: need`, with `within seconds` where a minute is too
/// short.
macro_rules! cases {
    ($($name:ident $(: $need:expr)? $(, within $seconds:literal)?;)*) => {
        pub(in crate::conformance) const CASES: &[$crate::conformance::case::Case] = &[$(
            $crate::conformance::case::Case {
                name: stringify!($name),
                need: [$($need,)? $crate::conformance::case::Need::Nothing][0],
                deadline: std::time::Duration::from_secs([$($seconds,)? 60][0]),
                run: |lab| Box::pin($name(lab)),
            },
        )*];
    };
}
pub(super) use cases;
