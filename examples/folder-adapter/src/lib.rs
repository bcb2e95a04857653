//! An adapter to read: messages as files in a folder, `folder:///path`. The guide beside it is
//! `docs/adapter.md`.
//!
//! Several processes may share the folder. A send is confirmed once the file and the folder that
//! lists it are on the disk; what a crash leaves half done was not confirmed.
//!
//! | option | meaning | default |
//! |---|---|---|
//! | `declare` | `create`, `verify` or `off` | `create` |
//! | `longest-lease` | how long a killed process hides what it held, at most | 10s |
//!
//! ```
//! # use anybroker_core::{Broker, Depth, Envelope, Outgoing, Queue, Subscription};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = std::env::temp_dir().join(format!("anybroker-folder-{}", std::process::id()));
//! let url = format!("folder://{}", path.display()).parse()?;
//! let broker = anybroker_folder_example::connect(url).await?;
//! let order = Envelope::new("order.place", r#"{"id":7}"#);
//! broker.producer().send(Outgoing::new(Queue::new("order.place"), order)).await?;
//! assert_eq!(broker.depth(&Subscription::queue("order.place")).await?.ready, Some(1));
//! # std::fs::remove_dir_all(path)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//! - A consumer that waits looks into its folder every 2 to 100 ms: nobody tells it of a new file.
//! - Each send and settlement syncs its folder for itself: hundreds each second, not thousands.
//! - What waits to be stored is kept in memory without a limit.
//! - The processes must agree on the time, to well below a lease, and the file system must support
//!   `flock` between them. Unix only: elsewhere a folder cannot be synced.
//! - A loss of power may forget that a message was handed out, and so count an attempt too few.

mod broker;
mod connection;
mod consumer;
mod folder;
mod name;

pub use broker::{FolderBroker, connect};
