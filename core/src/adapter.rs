//! What adapters are written with, beside the traits: the options that all of them have, and what
//! each would otherwise do again. Applications need none of it.

mod background;
mod names;
mod options;
mod outage;
mod patience;
mod room;
mod server;
mod server_clock;
mod shared_task;
mod suspects;

pub use background::Background;
pub use names::{partition, prefixed, stable_hash};
pub use options::Options;
pub use outage::Outage;
pub use patience::{patiently, pause};
pub(crate) use room::Place;
pub use room::Room;
pub use server::Server;
pub use server_clock::ServerClock;
pub use shared_task::SharedTask;
pub use suspects::{Alone, LONGEST_ALONE, Suspects, suspicious};

#[doc(inline)]
pub use crate::{
    __adapter_option_methods as option_methods, __adapter_server_methods as server_methods,
};
