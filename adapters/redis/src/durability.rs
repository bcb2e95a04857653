use anybroker_core::{ErrorKind, Result};

use crate::error::error_of;
use crate::link::Link;

/// What the server's settings mean for the guarantee; see the [crate's documentation](crate).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// What breaks it, in words; nothing where all is well.
    pub problems: Vec<String>,
}

impl Durability {
    /// Asks the server.
    pub(crate) async fn of(link: &Link) -> Result<Self> {
        let mut problems = Vec::new();
        match setting(link, "maxmemory-policy").await? {
            None => problems.push("CONFIG GET is refused, so that nothing is known".to_owned()),
            Some(policy) if policy != "noeviction" => problems.push(format!(
                "maxmemory-policy is {policy}: short of memory, the server removes messages; set noeviction"
            )),
            Some(_) => {}
        }
        match setting(link, "appendonly").await?.as_deref() {
            Some("no") => problems.push(
                "appendonly is off: a restart loses what came after the last snapshot; set appendonly yes"
                    .to_owned(),
            ),
            Some(_) => match setting(link, "appendfsync").await?.as_deref() {
                None | Some("always") => {}
                Some(policy) => problems.push(format!(
                    "appendfsync is {policy}: a crash of the machine loses what was confirmed last; set always"
                )),
            },
            None => {}
        }
        Ok(Self { problems })
    }

    /// Whether nothing breaks the guarantee.
    pub fn is_kept(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A setting; `None` where the user may not ask, or the server does not know it.
async fn setting(link: &Link, name: &str) -> Result<Option<String>> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    match link.query::<Vec<String>>("connect", &command).await {
        Ok(pair) => Ok(pair.into_iter().nth(1)),
        Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Broker) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Warns of what breaks the guarantee, or refuses it.
pub(crate) fn judge(durability: &Durability, require: bool) -> Result<()> {
    if durability.is_kept() {
        return Ok(());
    }
    let problems = durability.problems.join("; ");
    if require {
        let text = format!("{problems}; or connect without durability=require");
        return Err(error_of(ErrorKind::Config, "connect", text));
    }
    tracing::warn!(problems, "the server's settings break the guarantee");
    Ok(())
}
