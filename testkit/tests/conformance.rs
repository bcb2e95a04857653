//! The conformance suite on a [`Recorder`]: what wraps a broker keeps its contract.

use std::process::ExitCode;
use std::sync::Arc;

use anybroker_core::{Broker, Declare, Result};
use anybroker_memory::MemoryBroker;
use anybroker_testkit::Recorder;
use anybroker_testkit::conformance::{self, Target};

fn main() -> ExitCode {
    let recorder = Target::new("recorder", || connect(Declare::Create)).in_process();
    let recorder = recorder.verifying(|| connect(Declare::Verify));
    conformance::main([recorder.assuming(|| connect(Declare::Off))])
}

#[expect(clippy::unused_async, reason = "a target connects with an async function")]
async fn connect(declare: Declare) -> Result<Arc<dyn Broker>> {
    let builder = MemoryBroker::builder().name("recorder").declare(declare);
    Ok(Recorder::new(builder.max_payload(1024 * 1024).build()))
}
