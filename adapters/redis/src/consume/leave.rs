use std::time::Duration;

use anybroker_core::Result;

use super::Reader;
use crate::link::Call;
use crate::scripts::LEAVE;

/// Consumers of crashed processes are deleted when they have had nothing pending for so long.
const FORGOTTEN: Duration = Duration::from_hours(1);

impl Reader {
    pub(super) async fn leave(&mut self) -> Result<()> {
        // One that fails keeps none of the others from being tried.
        let disowned = self.disown().await;
        let forgotten = self.forget_process().await;
        let swept = self.sweep().await;
        disowned.and(forgotten).and(swept)
    }

    /// Says that this process is no more in an ordered group, unless another consumer of it owns
    /// something there.
    async fn forget_process(&self) -> Result<()> {
        let group = &self.shared.group;
        if !group.ordered {
            return Ok(());
        }
        let mut owners = redis::cmd("MGET");
        for partition in &group.partitions {
            owners.arg(&partition.lock);
        }
        let owners: Vec<Option<String>> = self.shared.link.query("leave", &owners).await?;
        let process = &self.topology.process;
        if owners.iter().flatten().any(|owner| owner.starts_with(process.as_str())) {
            return Ok(());
        }
        // One that owns nothing says that it is here with its next tick.
        let mut forget = redis::cmd("ZREM");
        forget.arg(&group.members).arg(process);
        self.shared.link.query::<i64>("leave", &forget).await.map(drop)
    }

    /// Deletes this consumer and those of crashed processes, where nothing is pending. The server
    /// makes one anew when it reads.
    pub(super) async fn sweep(&self) -> Result<()> {
        let shared = &self.shared;
        let mut call = Call::new(&LEAVE);
        for source in 0..self.cursors.len() {
            call = call.key(shared.group.stream(source));
        }
        let forgotten = crate::settle::millis(FORGOTTEN);
        let call = call.arg(&shared.group.name).arg(&shared.consumer).arg(forgotten);
        shared.link.run::<i64>("leave", &call).await.map(drop)
    }
}
