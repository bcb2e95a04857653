//! An adapter to read: messages as files in a folder, `folder:///path`. The guide beside it is
//! `docs/adapter.md`.
//!
//! Several processes may share the folder. A send is confirmed once the file and the folder that
//! lists it are on the disk; what a crash leaves half done was not confirmed.
//!
//! The one option is `declare`: `create` (the default), `verify` or `off`.
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
//! - A consumer that waits looks into its folder every 20 ms: nobody tells it of a new file.
//! - A lease is at most 10 s, so that what a killed process held comes back soon.
//! - A connection does one thing after the other, and syncs file and folder for each: hundreds of
//!   messages each second, not thousands. What waits is kept in memory without a limit.
//! - The processes must agree on the time, to well below a lease, and the file system must support
//!   `flock` between them. One that is stopped while it holds a lock stops the others of its group.
//!   Unix only: elsewhere a folder cannot be synced.
//! - A loss of power may forget that a message was handed out, and so count an attempt too few.
//! - A crash may leave a file `.new.…` in a folder: it was not confirmed, and may be removed.

mod broker;
mod consumer;
mod folder;
mod name;

pub use broker::{FolderBroker, connect};

/// The guide's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adapter.md")]
mod guide {}
