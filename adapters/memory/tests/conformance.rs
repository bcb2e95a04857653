//! The conformance suite on the memory broker.

use std::process::ExitCode;
use std::sync::Arc;

use anybroker_core::{Broker, Declare, Result};
use anybroker_memory::MemoryBroker;
use anybroker_testkit::conformance::{self, Target};

fn main() -> ExitCode {
    let memory = Target::new("memory", || connect(Declare::Create)).in_process();
    let memory = memory.verifying(|| connect(Declare::Verify));
    conformance::main([memory.assuming(|| connect(Declare::Off))])
}

#[expect(clippy::unused_async, reason = "a target connects with an async function")]
async fn connect(declare: Declare) -> Result<Arc<dyn Broker>> {
    let builder = MemoryBroker::builder().name("conformance").declare(declare);
    Ok(builder.max_payload(1024 * 1024).build())
}
