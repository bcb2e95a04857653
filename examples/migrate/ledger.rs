//! What was published and handled, each line on the disk before the next step is taken.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anybroker::BoxError;
use anybroker::MemoryIdempotencyStore;
use anybroker::adapter::{Begin, Claim, IdempotencyKey, IdempotencyStore, StoreFuture};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{GROUP, SOURCE, id};

/// How long the end of the service waits for what is still to be handled, and hears of nothing:
/// longer than leases and sessions of killed processes last.
const PATIENCE: Duration = Duration::from_secs(45);

/// What was published and handled: the sum of the ledger's lines.
#[derive(Debug, Default)]
pub(super) struct Book {
    planned: u64,
    /// Planned and not confirmed: after a crash nobody knows whether a broker has them.
    open: BTreeSet<u64>,
    handled: HashSet<String>,
    duplicates: u64,
}

impl Book {
    pub(super) fn read(ledger: &str) -> Self {
        let mut book = Self::default();
        ledger.split_inclusive('\n').for_each(|line| book.add(line));
        book
    }

    fn add(&mut self, line: &str) {
        // A killed process leaves half a line at most, the last.
        let line = line.strip_suffix('\n').unwrap_or_default();
        let (what, which) = line.split_once(' ').unwrap_or_default();
        match (what, which.parse()) {
            ("planned", Ok(last)) => {
                self.open.extend(self.planned + 1..=last);
                self.planned = last;
            }
            ("published", Ok(order)) => _ = self.open.remove(&order),
            ("handled", _) if self.handled.insert(which.to_owned()) => {}
            ("handled" | "duplicate", _) => self.duplicates += 1,
            _ => {}
        }
    }

    fn unhandled(&self) -> u64 {
        let key = |order| IdempotencyKey::new(GROUP, SOURCE, &id(order)).to_string();
        let confirmed = (1..=self.planned).filter(|order| !self.open.contains(order));
        confirmed.filter(|order| !self.handled.contains(&key(*order))).count() as u64
    }

    /// Prints the sum; what still waits on a broker is not lost.
    pub(super) fn sum(&self, waiting: u64) -> ExitCode {
        let (published, unhandled) = (self.planned - self.open.len() as u64, self.unhandled());
        println!(
            "published {published} · handled {} · duplicates {} · {} {unhandled}",
            self.handled.len(),
            self.duplicates,
            if waiting > 0 && unhandled > 0 { "unhandled" } else { "lost" },
        );
        if unhandled == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The ledger, open to write; it is the idempotency store too, so that a message's effect and the
/// note that it was handled are one line, as they are one transaction in a service's database.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    book: Arc<Mutex<Book>>,
    lines: mpsc::Sender<(String, oneshot::Sender<()>)>,
    /// Who handles what now; a crash frees it.
    claims: Arc<MemoryIdempotencyStore>,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> Result<Self, BoxError> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        // The claims are in this process: another one would not see them.
        file.try_lock().map_err(|error| format!("another `migrate serve` is running: {error}"))?;
        let text = fs::read_to_string(path)?;
        file.set_len(text.rfind('\n').map_or(0, |end| end as u64 + 1))?;
        let book = Arc::new(Mutex::new(Book::read(&text)));
        let (lines, written) = mpsc::channel::<(String, oneshot::Sender<()>)>();
        let sums = book.clone();
        // Lines that come together share one way to the disk.
        std::thread::spawn(move || {
            while let Ok(first) = written.recv() {
                let batch: Vec<_> = [first].into_iter().chain(written.try_iter()).collect();
                let text: String = batch.iter().map(|(line, _)| line.as_str()).collect();
                if let Err(error) = file.write_all(text.as_bytes()).and_then(|()| file.sync_data())
                {
                    eprintln!("the ledger cannot be written: {error}");
                    std::process::abort();
                }
                text.split_inclusive('\n').for_each(|line| lock(&sums).add(line));
                for (_, done) in batch {
                    let _ = done.send(());
                }
            }
        });
        Ok(Self { book, lines, claims: Arc::default() })
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Adds lines; resolves when they are on the disk, and goes on when it is dropped.
    pub(super) fn append(&self, lines: String) -> impl Future<Output = ()> + use<> {
        let (done, is_done) = oneshot::channel();
        // The writer ends with the process alone.
        let _ = self.lines.send((lines, done));
        async { _ = is_done.await }
    }

    /// What is to be published: what is open from before, else the next orders.
    pub(super) async fn open_orders(&self) -> BTreeSet<u64> {
        let last = self.book().planned + 20;
        if self.book().open.is_empty() {
            self.append(format!("planned {last}\n")).await;
        }
        self.book().open.clone()
    }

    /// Waits until all is handled, or nothing more happens.
    pub(super) async fn settled(&self) {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        while least > 0 && since.elapsed() < PATIENCE {
            let unhandled = self.book().unhandled();
            if unhandled < least {
                (least, since) = (unhandled, Instant::now());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IdempotencyStore for Ledger {
    fn begin(&self, key: IdempotencyKey, print: u64, lease: Duration) -> StoreFuture<Begin> {
        let begun = self.claims.begin(key, print, lease);
        let ledger = self.clone();
        StoreFuture::run(async move {
            match begun.await? {
                // Looked up under the claim, which ends after the line was written.
                Begin::Fresh(claim) if ledger.book().handled.contains(&key.to_string()) => {
                    drop(ledger.append(format!("duplicate {key}\n")));
                    ledger.claims.abandon(claim).await?;
                    Ok(Begin::Done)
                }
                begun => Ok(begun),
            }
        })
    }

    fn renew(&self, claim: &Claim, lease: Duration) -> StoreFuture<()> {
        self.claims.renew(claim, lease)
    }

    /// Remembers it for ever. The claim ends once the line is on the disk: until then another copy
    /// must wait, since it would be acknowledged for nothing if this process died now.
    fn complete(&self, claim: Claim, _: Duration) -> StoreFuture<()> {
        let written = self.append(format!("handled {}\n", claim.key()));
        let claims = self.claims.clone();
        StoreFuture::run(async move {
            written.await;
            claims.abandon(claim).await
        })
    }

    fn abandon(&self, claim: Claim) -> StoreFuture<()> {
        self.claims.abandon(claim)
    }
}
